// crf_viterbi on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "crf.h"

namespace petkit {
namespace {

using Paths = std::tuple<Tensor, Tensor>;

template <class Real> Paths viterbi(const CrfTensors& in) {
  const CrfParameters<Real> parameters(in, false);
  const CrfBatch<Real> batch(in);
  const Tensor paths = torch::stable::new_empty(in.mask, std::array<int64_t, 2>{in.batch, in.time},
                                                ScalarType::Long);
  const Tensor scores = crf_new<Real>(in, {in.batch});
  int64_t* path_rows = crf_out<int64_t>(paths);
  std::fill(path_rows, path_rows + in.batch * in.time, -1);
  std::fill(crf_out<Real>(scores), crf_out<Real>(scores) + in.batch, Real(0));
  if (in.time == 0)
    return {paths, scores};
  const int64_t stride = parameters.model().stride, pointer_bytes = in.tags <= 256 ? 1 : 2;
  const int64_t slots = std::min<int64_t>(in.batch, 64);
  over_slots(slots, [&](int64_t slot) {
    std::vector<Real> scratch(size_t(crf_scratch(stride)));
    std::vector<uint8_t> pointers(size_t(batch.longest() * stride * pointer_bytes));
    std::vector<int64_t> path(size_t(batch.longest()));
    for (int64_t i = slot; i < in.batch; i += slots) {
      const CrfSequence& sequence = batch.sequences[size_t(i)];
      const int64_t row = batch.order[size_t(i)];
      const double score = crf_kernels<Real>().viterbi(
          parameters.model(), sequence, pointers.data(), path.data(), scratch.data());
      crf_out<Real>(scores)[row] = Real(parameters.spoiled() ? std::nan("") : score);
      for (int64_t step = 0; step < sequence.length; ++step)
        path_rows[row * in.time + sequence.positions[step]] = path[size_t(step)];
    }
  });
  return {paths, scores};
}

Paths crf_viterbi(const Tensor emissions, const Tensor mask, const Tensor transitions,
                  const Tensor start, const Tensor end) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  return with_crf_type(emissions, [&](auto real) { return viterbi<decltype(real)>(in); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("crf_viterbi", TORCH_BOX(&petkit::crf_viterbi));
}
