#include "common/operator.h"
#include "lowbit_fake_quantize.cuh"

namespace petkit::cuda {
namespace {

// `exact` concerns the gradient only.
std::tuple<Tensor, Tensor, Tensor> fake_quantize(const Tensor weight, const Tensor levels,
                                                 int64_t bits, bool) {
  check_weight(weight);
  check_levels(levels, bits);
  const OnDevice device(weight, {{"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(weight),
               codebook = torch::stable::contiguous(levels);
  const int64_t count = dense.numel();
  const int64_t part_doubles = statistics_parts(count) * int64_t(sizeof(Moments) / sizeof(double));
  const Tensor parts = new_tensor(dense, std::array{part_doubles}, ScalarType::Double);
  const Tensor quantized = torch::stable::empty_like(dense);
  const Tensor shift = new_scalar(dense), scale = new_scalar(dense);
  dispatch(dense.scalar_type(), "weight", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_fake_quantize<T, decltype(constant_bits)::value>(
        input<T>(dense), input<float>(codebook), output<Moments>(parts), output<T>(quantized),
        output<float>(shift), output<float>(scale), count, device.stream());
  });
  return {quantized, shift, scale};
}

Tensor fake_quantize_backward(const Tensor grad, const Tensor weight, const Tensor shift,
                              const Tensor scale, const Tensor levels, int64_t bits) {
  check_weight(weight);
  check_levels(levels, bits);
  check_scalars(shift, scale);
  check_shape(grad, "grad", {weight.size(0), weight.size(1)});
  STD_TORCH_CHECK(grad.scalar_type() == weight.scalar_type(),
                  "grad must be of weight's type; convert it first");
  const OnDevice device(
      weight, {{"grad", &grad}, {"shift", &shift}, {"scale", &scale}, {"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(weight),
               gradient = torch::stable::contiguous(grad);
  const Tensor codebook = torch::stable::contiguous(levels);
  const int64_t count = dense.numel();
  const int64_t part_doubles =
      statistics_parts(count) * int64_t(sizeof(GradientSums) / sizeof(double));
  const Tensor parts = new_tensor(dense, std::array{part_doubles}, ScalarType::Double);
  const Tensor grad_weight = torch::stable::empty_like(dense);
  dispatch(dense.scalar_type(), "weight", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_fake_quantize_backward<T, decltype(constant_bits)::value>(
        input<T>(gradient), input<T>(dense), input<float>(shift), input<float>(scale),
        input<float>(codebook), output<GradientSums>(parts), output<T>(grad_weight), count,
        device.stream());
  });
  return grad_weight;
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("lowbit_fake_quantize", TORCH_BOX(&petkit::cuda::fake_quantize));
  m.impl("lowbit_fake_quantize_backward", TORCH_BOX(&petkit::cuda::fake_quantize_backward));
}
