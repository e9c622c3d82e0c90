// lowbit_transpose on the CPU: packed matrices are transposed without decoding them.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "operator.h"
#include "petkit/transpose.h"

namespace petkit {
namespace {

Tensor lowbit_transpose(const Tensor packed_, int64_t bits, int64_t columns) {
  STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 4 || bits == 8,
                  "bits must be 1, 2, 4 or 8, got ", bits);
  check_packed(packed_, "packed", 3, columns, bits);
  const Tensor packed = torch::stable::contiguous(packed_);
  const int64_t count = packed.size(0), rows = packed.size(1);
  const std::array<int64_t, 3> shape{count, columns, row_bytes(rows, int(bits))};
  Tensor transposed = torch::stable::new_empty(packed, shape);
  uint8_t* out = static_cast<uint8_t*>(transposed.mutable_data_ptr());
  const int64_t source = rows * packed.size(2), target = columns * shape[2];
  const int64_t grain = 1 + 65536 / (source + 1);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      transpose(bytes(packed) + i * source, rows, columns, int(bits), out + i * target);
  });
  return transposed;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("lowbit_transpose", TORCH_BOX(&petkit::lowbit_transpose));
}
