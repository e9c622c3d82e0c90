// Products of a dense matrix with a packed one for many rows, in tiles: bound by arithmetic.
// Forward y = x W^T reduces over in_features, backward grad_x = grad_y W over out_features; only
// the reading of the packed tile differs.
//
// A block makes a 64 x 64 tile of the result; each of its 256 threads keeps 4 x 4 of it in
// registers and reads two float4 of shared memory for 16 multiply-adds. The next tiles are fetched
// while the present ones are used.
#pragma once

#include "common/launch.cuh"
#include "common/tables.cuh"

namespace petkit::cuda {

constexpr int many_rows_threads = 256;
constexpr int tile_side = 64;
constexpr int tile_depth = 32;
// Rows of 68 floats keep float4 accesses aligned and put consecutive depths four banks apart.
constexpr int tile_pitch = tile_side + 4;

// Which part of the two operands' tiles a thread fetches: eight consecutive elements of each.
struct Fetch {
  float dense[group];
  uint64_t codes;
  bool inside;
};

// TRANSPOSED false: result columns are packed rows (out_features), the depth runs along a packed
// row. TRANSPOSED true: the depth is packed rows, result columns run along a packed row.
template <class T, int BITS, bool TRANSPOSED> struct Operands {
  const T* dense;
  const uint8_t* packed;
  int64_t rows, depth, columns;
  bool dense_aligned, packed_aligned;

  // A warp takes 32 rows at one depth: each reads a whole 32-byte sector, and the stores to shared
  // memory that transpose them go to 32 different banks.
  static __device__ int line() { return int(threadIdx.x) % tile_side; }
  static __device__ int part() { return int(threadIdx.x) / tile_side; }
  // Along packed rows, where eight threads share a row.
  static __device__ int packed_line() { return int(threadIdx.x) / (tile_side / group); }
  static __device__ int packed_part() { return int(threadIdx.x) % (tile_side / group); }

  __device__ void fetch(Fetch& to, int64_t first_row, int64_t first_column,
                        int64_t first_depth) const {
    const int64_t row = first_row + line(), at = first_depth + part() * group;
    load_group(dense + row * depth + at, row < rows ? depth - at : 0, dense_aligned, to.dense);
    const int64_t packed_row = TRANSPOSED ? first_depth + packed_line() : first_column + line();
    const int64_t index =
        TRANSPOSED ? first_column / group + packed_part() : first_depth / group + part();
    const int64_t packed_rows = TRANSPOSED ? depth : columns,
                  bytes = row_bytes(TRANSPOSED ? columns : depth, BITS);
    to.inside = packed_row < packed_rows;
    to.codes =
        to.inside ? load_codes<BITS>(packed + packed_row * bytes, index, bytes, packed_aligned) : 0;
  }

  static __device__ void store(const Fetch& from, const float* values, float* dense_tile,
                               float* packed_tile) {
#pragma unroll
    for (int i = 0; i < group; ++i)
      dense_tile[(part() * group + i) * tile_pitch + line()] = from.dense[i];
    float weights[group];
#pragma unroll
    for (int i = 0; i < group; ++i)
      weights[i] = from.inside ? values[code_at<BITS>(from.codes, i)] : 0.f;
    if constexpr (TRANSPOSED) {
      float4* at = reinterpret_cast<float4*>(packed_tile + packed_line() * tile_pitch +
                                             packed_part() * group);
      at[0] = make_float4(weights[0], weights[1], weights[2], weights[3]);
      at[1] = make_float4(weights[4], weights[5], weights[6], weights[7]);
    } else {
#pragma unroll
      for (int i = 0; i < group; ++i)
        packed_tile[(part() * group + i) * tile_pitch + line()] = weights[i];
    }
  }
};

__device__ inline void multiply_tiles(const float* dense_tile, const float* packed_tile,
                                      float (&sums)[4][4]) {
  const int across = int(threadIdx.x) % 16 * 4, down = int(threadIdx.x) / 16 * 4;
#pragma unroll
  for (int k = 0; k < tile_depth; ++k) {
    const float4 a = *reinterpret_cast<const float4*>(dense_tile + k * tile_pitch + down);
    const float4 b = *reinterpret_cast<const float4*>(packed_tile + k * tile_pitch + across);
    const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        sums[i][j] += left[i] * right[j];
  }
}

template <class T, int BITS, bool TRANSPOSED>
__global__ void __launch_bounds__(many_rows_threads)
    many_rows_kernel(Operands<T, BITS, TRANSPOSED> operands, const float* __restrict__ shift,
                     const float* __restrict__ scale, const float* __restrict__ codebook,
                     T* __restrict__ result) {
  PETKIT_SHARED(float, values, 1 << BITS);
  PETKIT_SHARED(float4, dense_storage, tile_depth * tile_pitch / 4);
  PETKIT_SHARED(float4, packed_storage, tile_depth * tile_pitch / 4);
  float *dense_tile = reinterpret_cast<float*>(dense_storage),
        *packed_tile = reinterpret_cast<float*>(packed_storage);
  fill_values<BITS>(values, codebook, *shift, *scale);

  // Blocks that share rows of the dense operand follow each other and find them in the L2 cache.
  const int64_t column_tiles = (operands.columns + tile_side - 1) / tile_side;
  const int64_t first_row = blockIdx.x / column_tiles * tile_side,
                first_column = blockIdx.x % column_tiles * tile_side;
  float sums[4][4] = {};
  Fetch next;
  operands.fetch(next, first_row, first_column, 0);
  for (int64_t depth = 0; depth < operands.depth; depth += tile_depth) {
    __syncthreads();
    operands.store(next, values, dense_tile, packed_tile);
    __syncthreads();
    if (depth + tile_depth < operands.depth)
      operands.fetch(next, first_row, first_column, depth + tile_depth);
    multiply_tiles(dense_tile, packed_tile, sums);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_row + int(threadIdx.x) / 16 * 4 + i,
                  column = first_column + int(threadIdx.x) % 16 * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row < operands.rows && column + j < operands.columns)
        result[row * operands.columns + column + j] = from_float<T>(sums[i][j]);
  }
}

// result (rows, columns) = dense (rows, depth) times the packed matrix, which is (columns, depth)
// or, TRANSPOSED, (depth, columns).
template <class T, int BITS, bool TRANSPOSED>
void many_rows(const T* dense, const uint8_t* packed, const float* shift, const float* scale,
               const float* codebook, T* result, int64_t rows, int64_t depth, int64_t columns,
               cudaStream_t stream) {
  const int64_t packed_rows = TRANSPOSED ? depth : columns,
                packed_columns = TRANSPOSED ? columns : depth;
  const Operands<T, BITS, TRANSPOSED> operands{
      dense,
      packed,
      rows,
      depth,
      columns,
      groups_aligned(dense, depth, rows),
      codes_aligned(packed, row_bytes(packed_columns, BITS), packed_rows, BITS)};
  const unsigned blocks = grid_x(ceil_div(rows, tile_side) * ceil_div(columns, tile_side));
  PETKIT_LAUNCH((many_rows_kernel<T, BITS, TRANSPOSED>), dim3(blocks), dim3(many_rows_threads), 0,
                stream, operands, shift, scale, codebook, result);
}

} // namespace petkit::cuda
