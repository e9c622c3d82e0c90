#include <tuple>

#include "crf_operator.h"
#include "crf_sample.cuh"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor> drawn_paths(const Tensor emissions, const Tensor mask,
                                       const Tensor transitions, const Tensor start,
                                       const Tensor end, const Tensor uniforms_) {
  const OnDevice device(emissions, {{"mask", &mask},
                                    {"transitions", &transitions},
                                    {"start", &start},
                                    {"end", &end},
                                    {"uniforms", &uniforms_}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  check_type(uniforms_, "uniforms", ScalarType::Double, "float64");
  check_dimensions(uniforms_, "uniforms", 3);
  const int64_t count = uniforms_.size(0);
  check_shape(uniforms_, "uniforms", {count, in.batch, in.time});
  const Tensor uniforms = torch::stable::contiguous(uniforms_);
  const Tensor samples =
      new_tensor(in.mask, std::array{count, in.batch, in.time}, ScalarType::Long);
  const Tensor log_z = new_tensor(in.transitions, std::array{in.batch}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    crf_sample(in.model<Real>(), in.rows<T>(), input<double>(uniforms), count,
               output<int64_t>(samples), output<Real>(log_z), scratch, device.stream());
  });
  return {samples, log_z};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_sample", TORCH_BOX(&petkit::cuda::drawn_paths));
}
