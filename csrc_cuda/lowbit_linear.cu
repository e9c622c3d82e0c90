#include "common/operator.h"
#include "lowbit_linear.cuh"

namespace petkit::cuda {
namespace {

Tensor linear(const Tensor x, const Tensor packed, const Tensor shift, const Tensor scale,
              const Tensor levels, int64_t bits) {
  check_levels(levels, bits);
  check_scalars(shift, scale);
  check_dimensions(x, "x", 2);
  check_dimensions(packed, "packed", 2);
  check_packed(packed, "packed", x.size(1), bits);
  const OnDevice device(
      x, {{"packed", &packed}, {"shift", &shift}, {"scale", &scale}, {"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(x), codes = torch::stable::contiguous(packed);
  const Tensor codebook = torch::stable::contiguous(levels);
  const int64_t rows = dense.size(0), in_features = dense.size(1), out_features = codes.size(0);
  const Tensor y = new_tensor(dense, std::array{rows, out_features}, dense.scalar_type());
  dispatch(dense.scalar_type(), "x", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_linear<T, decltype(constant_bits)::value>(
        input<T>(dense), input<uint8_t>(codes), input<float>(shift), input<float>(scale),
        input<float>(codebook), output<T>(y), rows, in_features, out_features, device.stream());
  });
  return y;
}

Tensor linear_backward(const Tensor grad, const Tensor packed, const Tensor shift,
                       const Tensor scale, const Tensor levels, int64_t bits, int64_t in_features) {
  check_levels(levels, bits);
  check_scalars(shift, scale);
  check_dimensions(packed, "packed", 2);
  check_packed(packed, "packed", in_features, bits);
  check_dimensions(grad, "grad", 2);
  check_shape(grad, "grad", {grad.size(0), packed.size(0)});
  const OnDevice device(
      grad, {{"packed", &packed}, {"shift", &shift}, {"scale", &scale}, {"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(grad), codes = torch::stable::contiguous(packed);
  const Tensor codebook = torch::stable::contiguous(levels);
  const int64_t rows = dense.size(0), out_features = dense.size(1);
  const Tensor grad_x = new_tensor(dense, std::array{rows, in_features}, dense.scalar_type());
  dispatch(dense.scalar_type(), "grad", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_linear_backward<T, decltype(constant_bits)::value>(
        input<T>(dense), input<uint8_t>(codes), input<float>(shift), input<float>(scale),
        input<float>(codebook), output<T>(grad_x), rows, in_features, out_features,
        device.stream());
  });
  return grad_x;
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("lowbit_linear", TORCH_BOX(&petkit::cuda::linear));
  m.impl("lowbit_linear_backward", TORCH_BOX(&petkit::cuda::linear_backward));
}
