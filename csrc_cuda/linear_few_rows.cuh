// y = x W^T from packed bits for few rows of x: bound by reading the bits. Each warp computes two
// output features for up to M rows of x, which the block keeps in shared memory, so that a float of
// x is read once for two weights.
#pragma once

#include "common/tile.cuh"

namespace petkit::cuda {

constexpr int few_rows_threads = 256;
constexpr int warp_outputs = 2;
constexpr int block_outputs = few_rows_threads / warp_threads * warp_outputs;

template <class T, int BITS, int LANE_BYTES, int M>
__global__ void __launch_bounds__(few_rows_threads)
    few_rows_kernel(const T* __restrict__ x, const uint8_t* __restrict__ packed,
                    const float* __restrict__ shift, const float* __restrict__ scale,
                    const float* __restrict__ levels_of_codes, T* __restrict__ y, int64_t rows,
                    int64_t in_features, int64_t out_features, int tile_columns, bool x_aligned,
                    bool packed_aligned) {
  using Shape = Tile<BITS, LANE_BYTES>;
  PETKIT_DYNAMIC_SHARED(tile);
  PETKIT_SHARED(float, codebook, 1 << BITS);
  for (int c = int(threadIdx.x); c < levels(BITS); c += int(blockDim.x))
    codebook[c] = levels_of_codes[c];

  const int64_t first_row = int64_t(blockIdx.y) * M;
  const int count = int(rows - first_row < M ? rows - first_row : M);
  const int64_t first_output = int64_t(blockIdx.x) * block_outputs + warp_index() * warp_outputs;
  const int64_t bytes = row_bytes(in_features, BITS);
  const uint8_t* packed_rows[warp_outputs];
#pragma unroll
  for (int r = 0; r < warp_outputs; ++r) {
    // A warp behind the last output repeats it and writes nothing: it must still meet the barriers.
    const int64_t output = first_output + r < out_features ? first_output + r : out_features - 1;
    packed_rows[r] = packed + output * bytes;
  }

  const int tile_stride = Shape::row_floats(tile_columns);
  float sums[warp_outputs][M] = {}, totals[M] = {};
  for (int64_t first = 0; first < in_features; first += tile_columns) {
    const int64_t left = (in_features - first + Shape::run - 1) / Shape::run * Shape::run;
    const int columns = int(left < tile_columns ? left : tile_columns);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (m < count)
        totals[m] +=
            load_tile_row<BITS, LANE_BYTES>(x + (first_row + m) * in_features, first, in_features,
                                            columns, x_aligned, tile + m * tile_stride);
    __syncthreads();
    tile_products<BITS, LANE_BYTES>(packed_rows, first * BITS / 8, bytes, packed_aligned, tile,
                                    tile_stride, columns, count, codebook, sums);
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const float total = block_sum(totals[m]);
#pragma unroll
    for (int r = 0; r < warp_outputs; ++r) {
      const float product = from_levels<BITS>(warp_sum(sums[r][m]), total, codebook);
      if (lane_index() == 0 && m < count && first_output + r < out_features)
        y[(first_row + m) * out_features + first_output + r] =
            from_float<T>(*shift * total + *scale * product);
    }
  }
}

template <class T, int BITS, int LANE_BYTES, int M>
void few_rows(const T* x, const uint8_t* packed, const float* shift, const float* scale,
              const float* codebook, T* y, int64_t rows, int64_t in_features, int64_t out_features,
              cudaStream_t stream) {
  using Shape = Tile<BITS, LANE_BYTES>;
  // At most 17 KiB of shared memory, so that it does not limit the number of resident blocks.
  constexpr int most_columns = 4096 / M;
  const int tile_columns =
      int(std::min<int64_t>(most_columns, ceil_div(in_features, Shape::run) * Shape::run));
  const size_t shared_bytes = sizeof(float) * size_t(M) * Shape::row_floats(tile_columns);
  const dim3 grid(grid_x(ceil_div(out_features, block_outputs)), grid_y(ceil_div(rows, M)));
  const bool packed_aligned =
      codes_aligned(packed, row_bytes(in_features, BITS), out_features, LANE_BYTES);
  PETKIT_LAUNCH((few_rows_kernel<T, BITS, LANE_BYTES, M>), grid, dim3(few_rows_threads),
                shared_bytes, stream, x, packed, shift, scale, codebook, y, rows, in_features,
                out_features, tile_columns, groups_aligned(x, in_features, rows), packed_aligned);
}

} // namespace petkit::cuda
