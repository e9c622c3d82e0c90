// Transposes stacks of packed matrices; used when adapters are put into a bank, so clarity goes
// before speed.
#pragma once

#include "common/codes.cuh"
#include "common/launch.cuh"

namespace petkit::cuda {

constexpr int transpose_threads = 256;

// Each thread gathers eight codes of one column and writes them as a group of a row of the result.
template <int BITS>
__global__ void __launch_bounds__(transpose_threads)
    transpose_kernel(const uint8_t* __restrict__ packed, uint8_t* __restrict__ transposed,
                     int64_t stacks, int64_t rows, int64_t columns, bool aligned) {
  const int64_t from_stride = row_bytes(columns, BITS), to_stride = row_bytes(rows, BITS);
  const int64_t row_groups = (rows + group - 1) / group, groups = stacks * columns * row_groups;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    // Neighbouring threads take neighbouring columns, which share bytes.
    const int64_t line = g / columns, column = g - line * columns;
    const int64_t stack = line / row_groups, index = line - stack * row_groups;
    const uint8_t* from = packed + (stack * rows + index * group) * from_stride;
    GroupWord<BITS> word = 0;
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (index * group + i < rows)
        word |= GroupWord<BITS>(GroupWord<BITS>(read_code(from + i * from_stride, column, BITS))
                                << (i * BITS));
    store_codes<BITS>(transposed + (stack * columns + column) * to_stride, index, to_stride,
                      aligned, word);
  }
}

// packed (stacks, rows, row_bytes(columns)) -> transposed (stacks, columns, row_bytes(rows)).
template <int BITS>
void lowbit_transpose(const uint8_t* packed, uint8_t* transposed, int64_t stacks, int64_t rows,
                      int64_t columns, cudaStream_t stream) {
  const int64_t groups = stacks * columns * ceil_div(rows, group);
  if (groups == 0)
    return;
  PETKIT_LAUNCH((transpose_kernel<BITS>), dim3(stride_blocks(groups, transpose_threads)),
                dim3(transpose_threads), 0, stream, packed, transposed, stacks, rows, columns,
                codes_aligned(transposed, row_bytes(rows, BITS), stacks * columns, BITS));
}

} // namespace petkit::cuda
