// Dequantize: one read of bits, one write of weights in the wanted type.
#pragma once

#include "common/launch.cuh"
#include "common/tables.cuh"

namespace petkit::cuda {

constexpr int dequantize_threads = 256;

template <class T, int BITS>
__global__ void __launch_bounds__(dequantize_threads)
    dequantize_kernel(const uint8_t* __restrict__ packed, const float* __restrict__ shift,
                      const float* __restrict__ scale, const float* __restrict__ codebook,
                      T* __restrict__ weight, int64_t rows, int64_t columns, bool packed_aligned,
                      bool weight_aligned) {
  PETKIT_SHARED(float, values, 1 << BITS);
  fill_values<BITS>(values, codebook, *shift, *scale);
  __syncthreads();
  const int64_t row_groups = (columns + group - 1) / group, row_stride = row_bytes(columns, BITS);
  const int64_t groups = rows * row_groups, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t row = g / row_groups, index = g - row * row_groups;
    const auto word =
        load_codes<BITS>(packed + row * row_stride, index, row_stride, packed_aligned);
    float out[group];
#pragma unroll
    for (int i = 0; i < group; ++i)
      out[i] = values[code_at<BITS>(word, i)];
    store_group(weight + row * columns + index * group, columns - index * group, weight_aligned,
                out);
  }
}

// packed (rows, row_bytes(columns)) -> weight (rows, columns).
template <class T, int BITS>
void lowbit_dequantize(const uint8_t* packed, const float* shift, const float* scale,
                       const float* codebook, T* weight, int64_t rows, int64_t columns,
                       cudaStream_t stream) {
  if (rows == 0 || columns == 0)
    return;
  if (columns % group == 0) {
    columns *= rows;
    rows = 1;
  }
  const bool packed_aligned = codes_aligned(packed, row_bytes(columns, BITS), rows, BITS);
  const unsigned blocks = stride_blocks(rows * ceil_div(columns, group), dequantize_threads);
  PETKIT_LAUNCH((dequantize_kernel<T, BITS>), dim3(blocks), dim3(dequantize_threads), 0, stream,
                packed, shift, scale, codebook, weight, rows, columns, packed_aligned,
                groups_aligned(weight, columns, rows));
}

} // namespace petkit::cuda
