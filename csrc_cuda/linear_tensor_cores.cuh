// Products of a dense 16-bit matrix with a packed one for many rows on tensor cores: the same tiles
// as linear_many_rows.cuh, larger.
//
// The weights enter as bare levels, so that neither their shift nor their scale is rounded to 16
// bits: result = shift * (row sum of the dense operand) + scale * (dense times levels). At one bit
// the levels become -1 and 1, which are exact; otherwise a level is the sum of two 16-bit numbers,
// whose second product brings the error below that of summing in float.
#pragma once

#include <mma.h>

#include "common/reduce.cuh"
#include "common/tables.cuh"

namespace petkit::cuda {

constexpr int core_threads = 256;
constexpr int core_rows = 128, core_columns = 64, core_depth = 32, core_side = 16;
// Rows of 80 and 144 bytes: eight rows of 16 bytes meet no common bank, and every 16 x 16 block
// starts at a multiple of 32 bytes as wmma asks.
constexpr int depth_pitch = core_depth + 8, column_pitch = core_columns + 8;
constexpr int staging_pitch = core_side + 4;

template <class T> struct alignas(16) Eight {
  T at[group];
};

// One thread's share of the next tiles: a group of two rows of the dense operand and a group of
// codes.
template <class T> struct CoreFetch {
  Eight<T> dense[2];
  uint64_t codes;
  bool inside;
};

template <class T> __device__ inline Eight<T> load_eight(const T* at, int64_t valid, bool aligned) {
  Eight<T> result;
  if (aligned && valid >= group) {
    *reinterpret_cast<uint4*>(&result) = *reinterpret_cast<const uint4*>(at);
  } else {
#pragma unroll
    for (int i = 0; i < group; ++i)
      result.at[i] = i < valid ? at[i] : from_float<T>(0.f);
  }
  return result;
}

// The codes' levels in two parts that add up to them; one bit needs no second part.
template <class T, int BITS> struct LevelParts {
  T high[1 << BITS], low[1 << BITS];

  __device__ void fill(const float* __restrict__ codebook) {
    for (int c = int(threadIdx.x); c < levels(BITS); c += int(blockDim.x)) {
      const float level = BITS == 1 ? float(2 * c - 1) : codebook[c];
      high[c] = from_float<T>(level);
      low[c] = from_float<T>(level - to_float(high[c]));
    }
  }
};

// As Operands in linear_many_rows.cuh: TRANSPOSED tells whether the depth runs over packed rows.
template <class T, int BITS, bool TRANSPOSED> struct CoreOperands {
  const T* dense;
  const uint8_t* packed;
  int64_t rows, depth, columns;
  bool dense_aligned, packed_aligned;

  static constexpr int dense_parts = core_depth / group;
  static constexpr int packed_parts = TRANSPOSED ? core_columns / group : core_depth / group;
  static constexpr int packed_pitch = TRANSPOSED ? column_pitch : depth_pitch;
  static constexpr int packed_lines = TRANSPOSED ? core_depth : core_columns;

  static __device__ int dense_row(int half) {
    return int(threadIdx.x) / dense_parts + half * (core_rows / 2);
  }
  static __device__ int dense_part() { return int(threadIdx.x) % dense_parts; }
  static __device__ int packed_line() { return int(threadIdx.x) / packed_parts; }
  static __device__ int packed_part() { return int(threadIdx.x) % packed_parts; }

  __device__ void fetch(CoreFetch<T>& to, int64_t first_row, int64_t first_column,
                        int64_t first_depth) const {
    const int64_t at = first_depth + dense_part() * group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + dense_row(half);
      to.dense[half] =
          load_eight(dense + row * depth + at, row < rows ? depth - at : 0, dense_aligned);
    }
    const int64_t line = (TRANSPOSED ? first_depth : first_column) + packed_line();
    const int64_t index = (TRANSPOSED ? first_column : first_depth) / group + packed_part();
    const int64_t bytes = row_bytes(TRANSPOSED ? columns : depth, BITS);
    to.inside = line < (TRANSPOSED ? depth : columns);
    to.codes =
        to.inside ? load_codes<BITS>(packed + line * bytes, index, bytes, packed_aligned) : 0;
  }

  static __device__ void store_dense(const CoreFetch<T>& from, T* tile, float (&row_sums)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<Eight<T>*>(tile + dense_row(half) * depth_pitch + dense_part() * group) =
          from.dense[half];
#pragma unroll
      for (int i = 0; i < group; ++i)
        row_sums[half] += to_float(from.dense[half].at[i]);
    }
  }

  static __device__ void store_levels(const CoreFetch<T>& from, const T* parts, T* tile) {
    Eight<T> out;
#pragma unroll
    for (int i = 0; i < group; ++i)
      out.at[i] = from.inside ? parts[code_at<BITS>(from.codes, i)] : from_float<T>(0.f);
    *reinterpret_cast<Eight<T>*>(tile + packed_line() * packed_pitch + packed_part() * group) = out;
  }
};

// The warp's 32 x 32 part of the result: two by two fragments. Warps lie four down, two across.
template <class T, bool TRANSPOSED> struct WarpProduct {
  using Accumulator =
      nvcuda::wmma::fragment<nvcuda::wmma::accumulator, core_side, core_side, core_side, float>;
  using Left = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, core_side, core_side, core_side, T,
                                      nvcuda::wmma::row_major>;
  using Right = nvcuda::wmma::fragment<
      nvcuda::wmma::matrix_b, core_side, core_side, core_side, T,
      std::conditional_t<TRANSPOSED, nvcuda::wmma::row_major, nvcuda::wmma::col_major>>;
  static constexpr int right_pitch = TRANSPOSED ? column_pitch : depth_pitch;

  Accumulator sums[2][2];

  static __device__ int first_row() { return warp_index() / 2 * 2 * core_side; }
  static __device__ int first_column() { return warp_index() % 2 * 2 * core_side; }

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      nvcuda::wmma::fill_fragment(sums[i / 2][i % 2], 0.f);
  }

  __device__ void add(const T* dense_tile, const T* level_tile) {
#pragma unroll
    for (int k = 0; k < core_depth; k += core_side) {
      Left left[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        nvcuda::wmma::load_matrix_sync(
            left[i], dense_tile + (first_row() + i * core_side) * depth_pitch + k, depth_pitch);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        Right right;
        const int column = first_column() + j * core_side;
        nvcuda::wmma::load_matrix_sync(
            right, level_tile + (TRANSPOSED ? k * right_pitch + column : column * right_pitch + k),
            right_pitch);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          nvcuda::wmma::mma_sync(sums[i][j], left[i], right, sums[i][j]);
      }
    }
  }
};

template <class T, int BITS, bool TRANSPOSED>
__global__ void __launch_bounds__(core_threads)
    tensor_core_kernel(CoreOperands<T, BITS, TRANSPOSED> operands, const float* __restrict__ shift,
                       const float* __restrict__ scale, const float* __restrict__ codebook,
                       T* __restrict__ result, bool result_aligned) {
  using Source = CoreOperands<T, BITS, TRANSPOSED>;
  using Parts = LevelParts<T, BITS>;
  constexpr bool two_parts = BITS > 1;
  constexpr int level_values = Source::packed_lines * Source::packed_pitch;
  PETKIT_SHARED(Parts, parts, 1);
  PETKIT_SHARED(T, dense_tile, core_rows * depth_pitch);
  PETKIT_SHARED(T, high_tile, level_values);
  PETKIT_SHARED(T, low_tile, two_parts ? level_values : 1);
  PETKIT_SHARED(float, row_totals, core_rows);
  PETKIT_SHARED(float, staging, core_threads / warp_threads * core_side * staging_pitch);
  parts[0].fill(codebook);

  const int64_t column_tiles = (operands.columns + core_columns - 1) / core_columns;
  const int64_t first_row = blockIdx.x / column_tiles * core_rows;
  const int64_t first_column = blockIdx.x % column_tiles * core_columns;
  WarpProduct<T, TRANSPOSED> product;
  product.clear();
  float row_sums[2] = {};
  CoreFetch<T> next;
  operands.fetch(next, first_row, first_column, 0);
  for (int64_t depth = 0; depth < operands.depth; depth += core_depth) {
    __syncthreads();
    Source::store_dense(next, dense_tile, row_sums);
    Source::store_levels(next, parts[0].high, high_tile);
    if constexpr (two_parts)
      Source::store_levels(next, parts[0].low, low_tile);
    __syncthreads();
    if (depth + core_depth < operands.depth)
      operands.fetch(next, first_row, first_column, depth + core_depth);
    product.add(dense_tile, high_tile);
    if constexpr (two_parts)
      product.add(dense_tile, low_tile);
  }

  // Four neighbouring lanes hold the parts of a row's sum.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = row_sums[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (Source::dense_part() == 0)
      row_totals[Source::dense_row(half)] = total;
  }
  __syncthreads();

  // At one bit the level of code c is middle + (2 c - 1) * step.
  const float middle = BITS == 1 ? (codebook[0] + codebook[1]) / 2 : 0.f;
  const float step = BITS == 1 ? (codebook[1] - codebook[0]) / 2 : 1.f;
  const float total_factor = *shift + *scale * middle, product_factor = *scale * step;
  float* own = staging + warp_index() * core_side * staging_pitch;
  const int line = lane_index() / 2, part = lane_index() % 2 * group;
#pragma unroll
  for (int f = 0; f < 4; ++f) {
    nvcuda::wmma::store_matrix_sync(own, product.sums[f / 2][f % 2], staging_pitch,
                                    nvcuda::wmma::mem_row_major);
    __syncwarp();
    const int row = product.first_row() + f / 2 * core_side + line;
    const int64_t column = first_column + product.first_column() + f % 2 * core_side + part;
    float values[group];
#pragma unroll
    for (int i = 0; i < group; ++i)
      values[i] =
          total_factor * row_totals[row] + product_factor * own[line * staging_pitch + part + i];
    if (first_row + row < operands.rows)
      store_group(result + (first_row + row) * operands.columns + column, operands.columns - column,
                  result_aligned, values);
    __syncwarp();
  }
}

// As many_rows in linear_many_rows.cuh.
template <class T, int BITS, bool TRANSPOSED>
void tensor_cores(const T* dense, const uint8_t* packed, const float* shift, const float* scale,
                  const float* codebook, T* result, int64_t rows, int64_t depth, int64_t columns,
                  cudaStream_t stream) {
  const int64_t packed_rows = TRANSPOSED ? depth : columns,
                packed_columns = TRANSPOSED ? columns : depth;
  CoreOperands<T, BITS, TRANSPOSED> operands{};
  operands.dense = dense, operands.packed = packed;
  operands.rows = rows, operands.depth = depth, operands.columns = columns;
  operands.dense_aligned = groups_aligned(dense, depth, rows);
  operands.packed_aligned =
      codes_aligned(packed, row_bytes(packed_columns, BITS), packed_rows, BITS);
  const unsigned blocks = grid_x(ceil_div(rows, core_rows) * ceil_div(columns, core_columns));
  PETKIT_LAUNCH((tensor_core_kernel<T, BITS, TRANSPOSED>), dim3(blocks), dim3(core_threads), 0,
                stream, operands, shift, scale, codebook, result,
                groups_aligned(result, columns, rows));
}

} // namespace petkit::cuda
