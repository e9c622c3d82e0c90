// Quantize and pack: two reads of the weight (moments, then codes) and one write of bits.
#pragma once

#include "common/tables.cuh"
#include "statistics.cuh"

namespace petkit::cuda {

template <class T, int BITS>
__global__ void __launch_bounds__(statistics_threads)
    quantize_kernel(const T* __restrict__ weight, const Moments* __restrict__ parts,
                    int64_t part_count, const float* __restrict__ codebook,
                    uint8_t* __restrict__ packed, float* __restrict__ shift,
                    float* __restrict__ scale, int64_t rows, int64_t columns, bool weight_aligned,
                    bool packed_aligned) {
  PETKIT_SHARED(float, cuts, 1 << BITS);
  const Statistics statistics = merge_parts(parts, part_count);
  fill_cuts<BITS>(cuts, codebook, statistics.shift, statistics.scale);
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *shift = statistics.shift;
    *scale = statistics.scale;
  }
  const int64_t row_groups = (columns + group - 1) / group, row_stride = row_bytes(columns, BITS);
  const int64_t groups = rows * row_groups, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t row = g / row_groups, index = g - row * row_groups,
                  valid = columns - index * group;
    float values[group];
    load_group(weight + row * columns + index * group, valid, weight_aligned, values);
    GroupWord<BITS> word = 0;
#pragma unroll
    for (int i = 0; i < group; ++i)
      // Padding codes stay zero: there is one canonical packed form.
      if (i < valid)
        word |= GroupWord<BITS>(GroupWord<BITS>(nearest_code<BITS>(values[i], cuts)) << (i * BITS));
    store_codes<BITS>(packed + row * row_stride, index, row_stride, packed_aligned, word);
  }
}

// weight (rows, columns), at least two values; codebook 2^BITS levels; parts: statistics_parts(rows
// * columns).
template <class T, int BITS>
void lowbit_quantize(const T* weight, const float* codebook, Moments* parts, uint8_t* packed,
                     float* shift, float* scale, int64_t rows, int64_t columns,
                     cudaStream_t stream) {
  const int64_t count = rows * columns;
  compute_moments(weight, parts, count, stream);
  if (columns % group == 0) {
    // Rows end on byte boundaries, so the matrix is one long row and the kernel's divisions are
    // trivial.
    columns = count;
    rows = 1;
  }
  const bool packed_aligned = codes_aligned(packed, row_bytes(columns, BITS), rows, BITS);
  const unsigned blocks = stride_blocks(rows * ceil_div(columns, group), statistics_threads);
  PETKIT_LAUNCH((quantize_kernel<T, BITS>), dim3(blocks), dim3(statistics_threads), 0, stream,
                weight, parts, statistics_parts(count), codebook, packed, shift, scale, rows,
                columns, groups_aligned(weight, columns, rows), packed_aligned);
}

} // namespace petkit::cuda
