// lowbit_dequantize on the CPU.
#include <torch/csrc/stable/library.h>

#include "operator.h"

namespace petkit {
namespace {

Tensor lowbit_dequantize(const Tensor packed_, const Tensor shift, const Tensor scale,
                         const Tensor codebook, int64_t bits, int64_t in_features,
                         ScalarType dtype) {
  check_bits(bits, codebook);
  check_packed(packed_, "packed", 2, in_features, bits);
  const Tensor packed = torch::stable::contiguous(packed_);
  const auto values = values_of(codebook, scalar_of(shift, "shift"), scalar_of(scale, "scale"));
  const std::array<int64_t, 2> shape{packed.size(0), in_features};
  Tensor dense = torch::stable::new_empty(packed, shape, dtype);
  const Sink sink(dense);
  const uint8_t* codes = bytes(packed);
  const auto decode = kernels().decode[variant(int(bits))];
  over_packed_blocks(shape[0], in_features, int(bits),
                     [&](int64_t offset, int64_t place, int64_t count) {
                       float buffer[block_size];
                       float* out = sink.place(offset, buffer);
                       decode(codes + place, count, values.data(), out);
                       sink.write(offset, count, out);
                     });
  return dense;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("lowbit_dequantize", TORCH_BOX(&petkit::lowbit_dequantize));
}
