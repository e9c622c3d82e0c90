#include "common/operator.h"
#include "lowbit_dequantize.cuh"
#include "lowbit_transpose.cuh"

namespace petkit::cuda {
namespace {

Tensor dequantize(const Tensor packed, const Tensor shift, const Tensor scale, const Tensor levels,
                  int64_t bits, int64_t in_features, ScalarType dtype) {
  check_levels(levels, bits);
  check_scalars(shift, scale);
  check_dimensions(packed, "packed", 2);
  check_packed(packed, "packed", in_features, bits);
  const OnDevice device(packed, {{"shift", &shift}, {"scale", &scale}, {"levels", &levels}});
  const Tensor codes = torch::stable::contiguous(packed),
               codebook = torch::stable::contiguous(levels);
  const int64_t rows = codes.size(0);
  const Tensor weight = new_tensor(codes, std::array{rows, in_features}, dtype);
  dispatch(dtype, "dtype", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_dequantize<T, decltype(constant_bits)::value>(
        input<uint8_t>(codes), input<float>(shift), input<float>(scale), input<float>(codebook),
        output<T>(weight), rows, in_features, device.stream());
  });
  return weight;
}

Tensor transpose(const Tensor packed, int64_t bits, int64_t columns) {
  check_bits(bits);
  check_dimensions(packed, "packed", 3);
  check_packed(packed, "packed", columns, bits);
  const OnDevice device(packed, {});
  const Tensor codes = torch::stable::contiguous(packed);
  const int64_t stacks = codes.size(0), rows = codes.size(1);
  const Tensor transposed =
      new_tensor(codes, std::array{stacks, columns, row_bytes(rows, int(bits))}, ScalarType::Byte);
  dispatch_bits(bits, [&](auto constant_bits) {
    lowbit_transpose<decltype(constant_bits)::value>(
        input<uint8_t>(codes), output<uint8_t>(transposed), stacks, rows, columns, device.stream());
  });
  return transposed;
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("lowbit_dequantize", TORCH_BOX(&petkit::cuda::dequantize));
  m.impl("lowbit_transpose", TORCH_BOX(&petkit::cuda::transpose));
}
