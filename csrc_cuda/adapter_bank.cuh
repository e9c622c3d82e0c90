// y_i = scaling * W_up act(W_down x_i) with the packed weights of the adapter that token i names,
// both projections fused: x is read once, the hidden values never leave the block, y is written
// once.
#pragma once

#include "common/tile.cuh"

namespace petkit::cuda {

constexpr int bank_threads = 128;
constexpr int bank_tile_columns = 1024;
constexpr int bank_lane_bytes = 4;
// Keeps the hidden values of a token beside its tile within 48 KiB of shared memory.
constexpr int64_t most_bank_hidden = 8192;

// The bank of n adapters: down (n, hidden, row_bytes(in)), up transposed (n, hidden,
// row_bytes(out)), and per adapter five constants: down shift, down scale, up shift, up scale,
// scaling.
struct Bank {
  const uint8_t *down, *up;
  const float *constants, *codebook;
  int64_t adapters, hidden, in_features, out_features;
  bool relu, down_aligned, up_aligned;
};

// Products of the hidden rows of `down` with `count` tokens, in hidden (TOKENS, bank.hidden). It
// passes a barrier before it writes to `hidden`, which the caller may still be reading for the
// tokens before, and before it reads `codebook`.
template <class T, int BITS, int TOKENS>
__device__ inline void bank_down(const Bank& bank, const uint8_t* down, const float* constants,
                                 const T* x, int count, bool aligned, const float* codebook,
                                 float* tile, float* hidden) {
  using Shape = Tile<BITS, bank_lane_bytes>;
  constexpr int tile_stride = Shape::row_floats(bank_tile_columns);
  const int64_t bytes = row_bytes(bank.in_features, BITS);
  float totals[TOKENS] = {};
  for (int64_t first = 0; first < bank.in_features; first += bank_tile_columns) {
    const int64_t left = (bank.in_features - first + Shape::run - 1) / Shape::run * Shape::run;
    const int columns = int(left < bank_tile_columns ? left : bank_tile_columns);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; ++t)
      if (t < count)
        totals[t] +=
            load_tile_row<BITS, bank_lane_bytes>(x + t * bank.in_features, first, bank.in_features,
                                                 columns, aligned, tile + t * tile_stride);
    __syncthreads();
    for (int64_t j = warp_index(); j < bank.hidden; j += warp_count()) {
      const uint8_t* const rows[1] = {down + j * bytes};
      float sums[1][TOKENS] = {};
      tile_products<BITS, bank_lane_bytes>(rows, first * BITS / 8, bytes, bank.down_aligned, tile,
                                           tile_stride, columns, count, codebook, sums);
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        const float sum = warp_sum(sums[0][t]);
        float& to = hidden[t * bank.hidden + j];
        if (lane_index() == 0 && t < count)
          to = first == 0 ? sum : to + sum;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TOKENS; ++t) {
    // The barriers in block_sum also make the products visible to all threads.
    const float total = block_sum(totals[t]);
    for (int64_t j = threadIdx.x; t < count && j < bank.hidden; j += blockDim.x) {
      float& at = hidden[t * bank.hidden + j];
      const float product = bank.in_features == 0 ? 0.f : from_levels<BITS>(at, total, codebook);
      const float sum = constants[0] * total + constants[1] * product;
      at = bank.relu && sum < 0.f ? 0.f : sum;
    }
  }
  __syncthreads();
}

// Outputs of `count` tokens from their hidden values: each thread makes eight columns of all of
// them.
template <class T, int BITS, int TOKENS>
__device__ inline void bank_up(const Bank& bank, const uint8_t* up, const float* constants,
                               const float* hidden, int count, bool aligned, const float* codebook,
                               T* y) {
  const int64_t bytes = row_bytes(bank.out_features, BITS),
                groups = (bank.out_features + group - 1) / group;
  for (int64_t g = threadIdx.x; g < groups; g += blockDim.x) {
    float sums[TOKENS][group] = {}, totals[TOKENS] = {};
    for (int64_t j = 0; j < bank.hidden; ++j) {
      const auto word = load_codes<BITS>(up + j * bytes, g, bytes, bank.up_aligned);
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        if (t >= count)
          continue;
        const float h = hidden[t * bank.hidden + j];
        totals[t] += h;
#pragma unroll
        for (int i = 0; i < group; ++i)
          add_product<BITS>(sums[t][i], h, code_at<BITS>(word, i), codebook);
      }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (t >= count)
        continue;
#pragma unroll
      for (int i = 0; i < group; ++i)
        sums[t][i] =
            constants[4] * (constants[2] * totals[t] +
                            constants[3] * from_levels<BITS>(sums[t][i], totals[t], codebook));
      store_group(y + t * bank.out_features + g * group, bank.out_features - g * group, aligned,
                  sums[t]);
    }
  }
}

template <class T> __device__ inline void fill_outputs(T* y, int64_t count, float value) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    y[i] = from_float<T>(value);
}

// A block takes TOKENS consecutive tokens, and those of them that follow each other with one
// adapter (the tokens of an image, say) together: their packed weights are decoded once.
template <class T, int BITS, int TOKENS>
__global__ void __launch_bounds__(bank_threads)
    adapter_bank_kernel(const T* __restrict__ x, const int64_t* __restrict__ adapter_ids, Bank bank,
                        T* __restrict__ y, int64_t tokens, bool x_aligned, bool y_aligned) {
  PETKIT_DYNAMIC_SHARED(dynamic);
  PETKIT_SHARED(float, codebook, 1 << BITS);
  for (int c = int(threadIdx.x); c < levels(BITS); c += int(blockDim.x))
    codebook[c] = bank.codebook[c];
  float* tile = dynamic;
  float* hidden = dynamic + TOKENS * Tile<BITS, bank_lane_bytes>::row_floats(bank_tile_columns);
  const int64_t begin = int64_t(blockIdx.x) * TOKENS,
                end = begin + TOKENS < tokens ? begin + TOKENS : tokens;
  for (int64_t first = begin; first < end;) {
    const int64_t adapter = adapter_ids[first];
    int count = 1;
    while (first + count < end && adapter_ids[first + count] == adapter)
      ++count;
    T* out = y + first * bank.out_features;
    if (adapter >= 0 && adapter < bank.adapters) {
      const uint8_t* down = bank.down + adapter * bank.hidden * row_bytes(bank.in_features, BITS);
      const uint8_t* up = bank.up + adapter * bank.hidden * row_bytes(bank.out_features, BITS);
      const float* constants = bank.constants + adapter * 5;
      bank_down<T, BITS, TOKENS>(bank, down, constants, x + first * bank.in_features, count,
                                 x_aligned, codebook, tile, hidden);
      bank_up<T, BITS, TOKENS>(bank, up, constants, hidden, count, y_aligned, codebook, out);
    } else {
      // An adapter that does not exist cannot be reported from here without a round trip: its rows
      // become NaN.
      fill_outputs(out, count * bank.out_features, adapter == -1 ? 0.f : NAN);
    }
    first += count;
  }
}

template <class T, int BITS, int TOKENS>
void launch_adapter_bank(const T* x, const int64_t* adapter_ids, const Bank& bank, T* y,
                         int64_t tokens, cudaStream_t stream) {
  const size_t floats =
      size_t(TOKENS) *
      (Tile<BITS, bank_lane_bytes>::row_floats(bank_tile_columns) + size_t(bank.hidden));
  PETKIT_LAUNCH((adapter_bank_kernel<T, BITS, TOKENS>), dim3(grid_x(ceil_div(tokens, TOKENS))),
                dim3(bank_threads), floats * sizeof(float), stream, x, adapter_ids, bank, y, tokens,
                groups_aligned(x, bank.in_features, tokens),
                groups_aligned(y, bank.out_features, tokens));
}

// Few tokens are spread over more blocks; many share a block, where neighbours with one adapter
// share its decoding. Four rows of a wide hidden layer would not fit the 48 KiB of shared memory
// that need no opting in.
inline int bank_tokens_per_block(int64_t tokens, int64_t hidden) {
  constexpr int64_t plenty = 2048, wide = 1024;
  return tokens < plenty || hidden > wide ? 1 : 4;
}

// x (tokens, in_features), adapter_ids (tokens) -> y (tokens, out_features).
template <class T, int BITS>
void adapter_bank(const T* x, const int64_t* adapter_ids, Bank bank, T* y, int64_t tokens,
                  int tokens_per_block, cudaStream_t stream) {
  if (tokens == 0 || bank.out_features == 0)
    return;
  const int64_t rows = bank.adapters * bank.hidden;
  bank.down_aligned =
      codes_aligned(bank.down, row_bytes(bank.in_features, BITS), rows, bank_lane_bytes);
  bank.up_aligned = codes_aligned(bank.up, row_bytes(bank.out_features, BITS), rows, BITS);
  if (tokens_per_block == 1)
    launch_adapter_bank<T, BITS, 1>(x, adapter_ids, bank, y, tokens, stream);
  else
    launch_adapter_bank<T, BITS, 4>(x, adapter_ids, bank, y, tokens, stream);
}

} // namespace petkit::cuda
