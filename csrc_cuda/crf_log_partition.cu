#include <tuple>

#include "crf_gradient.cuh"
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

std::tuple<Tensor, Tensor, Tensor, Tensor>
log_partition_backward(const Tensor grad_, const Tensor emissions, const Tensor mask,
                       const Tensor transitions, const Tensor start, const Tensor end) {
  const OnDevice device(emissions, {{"grad", &grad_},
                                    {"mask", &mask},
                                    {"transitions", &transitions},
                                    {"start", &start},
                                    {"end", &end}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  check_type(grad_, "grad", in.real(), "of the type of transitions");
  check_shape(grad_, "grad", {in.batch});
  const Tensor grad = torch::stable::contiguous(grad_);
  const Tensor of_emissions =
      new_tensor(in.emissions, std::array{in.batch, in.time, in.tags}, in.emissions.scalar_type());
  const Tensor of_transitions = new_tensor(in.transitions, std::array{in.tags, in.tags}, in.real());
  const Tensor of_start = new_tensor(in.start, std::array{in.tags}, in.real());
  const Tensor of_end = new_tensor(in.end, std::array{in.tags}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    const CrfGradient<T, Real> gradient{input<Real>(grad), output<T>(of_emissions),
                                        output<Real>(of_transitions), output<Real>(of_start),
                                        output<Real>(of_end)};
    crf_log_partition_backward(in.model<Real>(), in.rows<T>(), gradient, scratch, device.stream());
  });
  return {of_emissions, of_transitions, of_start, of_end};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_log_partition", TORCH_BOX(&petkit::cuda::log_partition));
  m.impl("crf_log_partition_backward", TORCH_BOX(&petkit::cuda::log_partition_backward));
}
