#include <tuple>

#include "beam_crf_operator.h"
#include "beam_crf_viterbi.cuh"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor> best_beam_paths(const Tensor emissions, const Tensor mask,
                                           const Tensor left, const Tensor right,
                                           const Tensor dynamic, int64_t beam) {
  const OnDevice device(
      emissions, {{"mask", &mask}, {"left", &left}, {"right", &right}, {"dynamic", &dynamic}});
  const BeamArguments in(emissions, mask, left, right, dynamic, beam);
  const Tensor paths = new_tensor(in.mask, std::array{in.batch, in.time}, ScalarType::Long);
  const Tensor scores = new_tensor(in.left, std::array{in.batch}, in.real());
  TensorScratch scratch(in.left);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    beam_crf_viterbi(in.view<T, Real>(), output<int64_t>(paths), output<Real>(scores), scratch,
                     device.stream());
  });
  return {paths, scores};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("beam_crf_viterbi", TORCH_BOX(&petkit::cuda::best_beam_paths));
}
