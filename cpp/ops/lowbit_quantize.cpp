// lowbit_quantize on the CPU: one read for mean and deviation, one for the codes.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "operator.h"

namespace petkit {
namespace {

std::tuple<Tensor, Tensor, Tensor> lowbit_quantize(const Tensor weight_, const Tensor codebook,
                                                   int64_t bits) {
  check_bits(bits, codebook);
  check_rank(weight_, "weight", 2);
  const Tensor weight = torch::stable::contiguous(weight_);
  const int64_t rows = weight.size(0), columns = weight.size(1);
  const Moments moments = moments_of(weight);
  const auto bounds = bounds_of(codebook, moments.shift, moments.scale);
  const std::array<int64_t, 2> shape{rows, row_bytes(columns, int(bits))};
  Tensor packed = torch::stable::new_empty(weight, shape, ScalarType::Byte);
  const Source source(weight, "weight");
  uint8_t* out = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const auto encode = kernels().encode[variant(int(bits))];
  over_packed_blocks(rows, columns, int(bits), [&](int64_t offset, int64_t place, int64_t count) {
    float buffer[block_size];
    encode(source.read(offset, count, buffer), count, bounds.data(), out + place);
  });
  return {packed, new_scalar(weight, moments.shift), new_scalar(weight, moments.scale)};
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("lowbit_quantize", TORCH_BOX(&petkit::lowbit_quantize));
}
