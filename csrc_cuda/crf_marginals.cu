#include <tuple>

#include "crf_operator.h"
#include "crf_posterior.cuh"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> marginals_of_tags(const Tensor emissions, const Tensor mask,
                                                     const Tensor transitions, const Tensor start,
                                                     const Tensor end) {
  const OnDevice device(
      emissions,
      {{"mask", &mask}, {"transitions", &transitions}, {"start", &start}, {"end", &end}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  const Tensor marginals =
      new_tensor(in.transitions, std::array{in.batch, in.time, in.tags}, in.real());
  const Tensor scores = new_tensor(in.transitions, std::array{in.batch}, in.real());
  const Tensor log_z = new_tensor(in.transitions, std::array{in.batch}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    crf_marginals(in.model<Real>(), in.rows<T>(), output<Real>(marginals), output<Real>(scores),
                  output<Real>(log_z), scratch, device.stream());
  });
  return {marginals, scores, log_z};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_marginals", TORCH_BOX(&petkit::cuda::marginals_of_tags));
}
