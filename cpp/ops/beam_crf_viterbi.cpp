// beam_crf_viterbi on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "beam_crf.h"

namespace petkit {
namespace {

using Paths = std::tuple<Tensor, Tensor>;

template <class Real> Paths viterbi(const BeamTensors& in) {
  const BeamFactors<Real> factors = beam_factors<Real>(in);
  const Tensor paths = torch::stable::new_empty(in.mask, std::array<int64_t, 2>{in.batch, in.time},
                                                ScalarType::Long);
  const Tensor scores = torch::stable::new_empty(in.left, std::array<int64_t, 1>{in.batch});
  int64_t* path_rows = crf_out<int64_t>(paths);
  std::fill(path_rows, path_rows + in.batch * in.time, -1);
  std::fill(crf_out<Real>(scores), crf_out<Real>(scores) + in.batch, Real(0));
  if (in.time == 0)
    return {paths, scores};
  const std::vector<int64_t> order = by_length(in);
  const int64_t slots = std::min<int64_t>(in.batch, 64);
  over_slots(slots, [&](int64_t slot) {
    BeamRow<Real> row(in, factors);
    std::vector<int32_t> candidates(size_t(in.time * in.beam));
    std::vector<uint16_t> pointers(size_t(in.time * factors.stride()));
    std::vector<int64_t> places(size_t(in.time)), path(size_t(in.time));
    for (int64_t i = slot; i < in.batch; i += slots) {
      const int64_t b = order[size_t(i)];
      if (!row.find(b, candidates.data())) {
        crf_out<Real>(scores)[b] = Real(std::nan(""));
        continue;
      }
      beam_kernels<Real>().viterbi(factors, row.sequence(), pointers.data(), places.data(),
                                   row.scratch());
      for (int64_t step = 0; step < row.length(); ++step) {
        path[size_t(step)] = row.candidate(step, places[size_t(step)]);
        path_rows[b * in.time + row.positions[size_t(step)]] = path[size_t(step)];
      }
      crf_out<Real>(scores)[b] = Real(row.score(factors, path.data()));
    }
  });
  return {paths, scores};
}

Paths beam_crf_viterbi(const Tensor emissions, const Tensor mask, const Tensor left,
                       const Tensor right, const Tensor dynamic, int64_t beam) {
  const Tensor none = torch::stable::new_empty(mask, std::array<int64_t, 1>{0}, ScalarType::Long);
  const BeamTensors in(emissions, mask, left, right, dynamic, none, beam);
  return with_crf_type(emissions, [&](auto real) { return viterbi<decltype(real)>(in); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("beam_crf_viterbi", TORCH_BOX(&petkit::beam_crf_viterbi));
}
