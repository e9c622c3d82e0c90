#include "common/operator.h"
#include "lowbit_quantize.cuh"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor weight, const Tensor levels,
                                            int64_t bits) {
  check_weight(weight);
  check_levels(levels, bits);
  const OnDevice device(weight, {{"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(weight),
               codebook = torch::stable::contiguous(levels);
  const int64_t rows = dense.size(0), columns = dense.size(1);
  const int64_t part_doubles =
      statistics_parts(rows * columns) * int64_t(sizeof(Moments) / sizeof(double));
  const Tensor parts = new_tensor(dense, std::array{part_doubles}, ScalarType::Double);
  const Tensor packed =
      new_tensor(dense, std::array{rows, row_bytes(columns, int(bits))}, ScalarType::Byte);
  const Tensor shift = new_scalar(dense), scale = new_scalar(dense);
  dispatch(dense.scalar_type(), "weight", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    lowbit_quantize<T, decltype(constant_bits)::value>(
        input<T>(dense), input<float>(codebook), output<Moments>(parts), output<uint8_t>(packed),
        output<float>(shift), output<float>(scale), rows, columns, device.stream());
  });
  return {packed, shift, scale};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("lowbit_quantize", TORCH_BOX(&petkit::cuda::quantize));
}
