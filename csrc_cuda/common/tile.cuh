// A few rows of x in shared memory as float, and the dot products of packed rows with them by one
// warp.
//
// A lane takes LANE_BYTES consecutive bytes of a packed row (one load), that is `lane_codes`
// columns, and reads those columns of x as float4. Lanes that read float4 at a power-of-two
// distance would meet in the same banks, hence the four floats of padding behind each run of
// columns.
#pragma once

#include "codes.cuh"
#include "reduce.cuh"

namespace petkit::cuda {

template <int BITS, int LANE_BYTES> struct Tile {
  static constexpr int lane_codes = LANE_BYTES * 8 / BITS;
  static constexpr int warp_codes = lane_codes * warp_threads;
  static constexpr int run = lane_codes > 32 ? lane_codes : 32;

  // Place of a column in a row of the tile, and the floats that a row of `columns` takes.
  __host__ __device__ static constexpr int place(int column) { return column + column / run * 4; }
  __host__ __device__ static constexpr int row_floats(int columns) {
    return place((columns + run - 1) / run * run);
  }
};

// Loads columns [first, first + columns) of a row of x, zeros behind the row's end; returns this
// thread's part of their sum. `columns` is a multiple of a run.
template <int BITS, int LANE_BYTES, class T>
__device__ inline float load_tile_row(const T* __restrict__ row, int64_t first, int64_t in_features,
                                      int columns, bool aligned, float* tile) {
  float sum = 0;
  for (int c = int(threadIdx.x) * group; c < columns; c += int(blockDim.x) * group) {
    float values[group];
    load_group(row + first + c, in_features - first - c, aligned, values);
#pragma unroll
    for (int i = 0; i < group; i += 4) {
      const float4 quad = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
      *reinterpret_cast<float4*>(tile + Tile<BITS, LANE_BYTES>::place(c + i)) = quad;
      sum += (quad.x + quad.y) + (quad.z + quad.w);
    }
  }
  return sum;
}

// LANE_BYTES of a packed row as 32-bit words; bytes past the row's end are zero (they meet zeros of
// x).
template <int LANE_BYTES>
__device__ inline void load_lane(const uint8_t* __restrict__ row, int64_t first, int64_t bytes,
                                 bool aligned, uint32_t (&words)[LANE_BYTES / 4]) {
  if (aligned && first + LANE_BYTES <= bytes) {
    if constexpr (LANE_BYTES == 16) {
      const uint4 all = *reinterpret_cast<const uint4*>(row + first);
      words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(row + first);
    }
    return;
  }
#pragma unroll
  for (int w = 0; w < LANE_BYTES / 4; ++w) {
    words[w] = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b)
      if (first + w * 4 + b < bytes)
        words[w] |= uint32_t(row[first + w * 4 + b]) << (8 * b);
  }
}

// One packed weight times x, added up. At one bit only the x under set bits are added: see
// `from_levels`.
template <int BITS>
__device__ inline void add_product(float& sum, float x, unsigned code, const float* codebook) {
  if constexpr (BITS == 1)
    sum += code ? x : 0.f;
  else
    sum += codebook[code] * x;
}

// sum of level * x from what add_product gathered. At one bit the lower level weighs all x and the
// step between the two levels the x under set bits: for symmetric levels that is level * (2 * set -
// total).
template <int BITS>
__device__ inline float from_levels(float gathered, float total, const float* codebook) {
  if constexpr (BITS == 1)
    return codebook[0] * total + (codebook[1] - codebook[0]) * gathered;
  else
    return gathered;
}

// Adds to sums[r][m] this lane's share of packed row r (of ROWS) times row m (of `count`, at most
// M) of the tile, which holds `columns` columns from byte `first_byte` of the packed rows on.
template <int BITS, int LANE_BYTES, int ROWS, int M>
__device__ inline void tile_products(const uint8_t* const (&rows)[ROWS], int64_t first_byte,
                                     int64_t bytes, bool aligned, const float* tile,
                                     int tile_stride, int columns, int count, const float* codebook,
                                     float (&sums)[ROWS][M]) {
  using Shape = Tile<BITS, LANE_BYTES>;
  constexpr int word_codes = 32 / BITS;
  for (int base = lane_index() * Shape::lane_codes; base < columns; base += Shape::warp_codes) {
    uint32_t words[ROWS][LANE_BYTES / 4];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      load_lane<LANE_BYTES>(rows[r], first_byte + int64_t(base) * BITS / 8, bytes, aligned,
                            words[r]);
    const float* at = tile + Shape::place(base);
#pragma unroll
    for (int j = 0; j < Shape::lane_codes; j += 4) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (m >= count)
          continue;
        const float4 x = *reinterpret_cast<const float4*>(at + m * tile_stride + j);
        const float quad[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            add_product<BITS>(sums[r][m], quad[i],
                              code_at<BITS>(words[r][(j + i) / word_codes], (j + i) % word_codes),
                              codebook);
      }
    }
  }
}

} // namespace petkit::cuda
