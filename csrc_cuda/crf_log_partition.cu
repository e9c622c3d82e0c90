#include "crf_operator.h"

namespace petkit::cuda {
namespace {

Tensor log_partition(const Tensor emissions, const Tensor mask, const Tensor transitions,
                     const Tensor start, const Tensor end) {
  const OnDevice device(
      emissions,
      {{"mask", &mask}, {"transitions", &transitions}, {"start", &start}, {"end", &end}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  const Tensor log_z = new_tensor(in.transitions, std::array{in.batch}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    crf_log_partition(in.model<Real>(), in.rows<T>(), output<Real>(log_z), scratch,
                      device.stream());
  });
  return log_z;
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_log_partition", TORCH_BOX(&petkit::cuda::log_partition));
}
