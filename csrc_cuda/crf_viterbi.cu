#include <tuple>

#include "crf_operator.h"
#include "crf_viterbi.cuh"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor> best_paths(const Tensor emissions, const Tensor mask,
                                      const Tensor transitions, const Tensor start,
                                      const Tensor end) {
  const OnDevice device(
      emissions,
      {{"mask", &mask}, {"transitions", &transitions}, {"start", &start}, {"end", &end}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  const Tensor paths = new_tensor(in.mask, std::array{in.batch, in.time}, ScalarType::Long);
  const Tensor scores = new_tensor(in.transitions, std::array{in.batch}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    crf_viterbi(in.model<Real>(), in.rows<T>(), output<int64_t>(paths), output<Real>(scores),
                scratch, device.stream());
  });
  return {paths, scores};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_viterbi", TORCH_BOX(&petkit::cuda::best_paths));
}
