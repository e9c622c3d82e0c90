// Softmax statistics of rows of logits, one block a row and one read of it, and their gradient.
#pragma once

#include "common/softmax.cuh"

namespace petkit::cuda {

// What is wanted of a row besides its sums; null pointers where nothing is.
struct Wanted {
  const int64_t* token_ids;
  int64_t top_k; // at most most_top_k
  float temperature;
};

// Where the results of all rows go; `log_prob` and the `top` ones only where wanted.
struct Results {
  float *log_z, *entropy, *varentropy, *max_prob, *log_prob, *top_log_probs;
  int64_t* top_ids;
  float *maximum, *log_sum;
};

// The k largest entries of a row, gathered in shared memory while the row passes by. An entry is
// the logit's bits in rising order above the complement of its position, so that equal logits come
// in the order of their positions and the order in which threads append does not show.
constexpr int gathered_entries = 4096;
constexpr int64_t most_top_k = gathered_entries - row_threads * group;

__device__ inline uint32_t rising_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_rising_bits(uint32_t rising) {
  const uint32_t bits = rising & 0x80000000u ? rising & 0x7fffffffu : ~rising;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

struct Gathered {
  unsigned long long* entries; // gathered_entries
  int* count;
  unsigned long long bound; // entries up to here are out

  // Every thread of the block must call it, once a tile, with its own group of values.
  __device__ void add(const float (&values)[group], int64_t valid, int64_t first, int64_t top_k) {
#pragma unroll
    for (int i = 0; i < group; ++i) {
      const unsigned long long entry =
          static_cast<unsigned long long>(rising_bits(values[i])) << 32 | uint32_t(~(first + i));
      if (i < valid && entry > bound)
        entries[atomicAdd(count, 1)] = entry;
    }
    __syncthreads();
    if (*count > most_top_k)
      keep(top_k);
    __syncthreads();
  }

  // Sorts what is there, largest first, and drops all behind the k-th.
  __device__ void keep(int64_t top_k) {
    int size = 2;
    while (size < *count)
      size *= 2;
    for (int i = *count + int(threadIdx.x); i < size; i += row_threads)
      entries[i] = 0;
    for (int run = 2; run <= size; run *= 2)
      for (int step = run / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int pair = int(threadIdx.x); pair < size / 2; pair += row_threads) {
          const int low = pair / step * 2 * step + pair % step, high = low + step;
          const bool falling = (low & run) == 0;
          const unsigned long long a = entries[low], b = entries[high];
          if ((a < b) == falling) {
            entries[low] = b;
            entries[high] = a;
          }
        }
      }
    __syncthreads();
    if (*count >= top_k)
      bound = entries[top_k - 1];
    __syncthreads();
    if (threadIdx.x == 0 && *count > top_k)
      *count = int(top_k);
    __syncthreads();
  }
};

template <class T, bool TOP>
__global__ void __launch_bounds__(row_threads)
    token_statistics_kernel(const T* __restrict__ logits, Wanted wanted, Results results,
                            int64_t vocab, bool aligned) {
  PETKIT_SHARED(unsigned long long, entries, TOP ? gathered_entries : 1);
  PETKIT_SHARED(int, count, 1);
  const int64_t row = blockIdx.x;
  const T* at = logits + row * vocab;
  const float factor = log2_e / wanted.temperature;
  if (threadIdx.x == 0)
    *count = 0;
  __syncthreads();
  Gathered gathered{entries, count, 0};
  SoftmaxState own;
  // Whole tiles, so that all threads meet at the barriers.
  for (int64_t tile = 0; tile < vocab; tile += row_threads * group) {
    const int64_t first = tile + int64_t(threadIdx.x) * group;
    const int64_t valid = first < vocab ? vocab - first : 0;
    float values[group];
    load_group(at + first, valid, aligned, values);
    own.add(values, valid, factor);
    if constexpr (TOP)
      gathered.add(values, valid, first, wanted.top_k);
  }
  const SoftmaxTotals all = block_totals(own, factor);
  const double inverse = 1 / double(wanted.temperature);
  if (threadIdx.x == 0) {
    results.log_z[row] = all.log_z(inverse);
    results.entropy[row] = float(all.entropy());
    results.varentropy[row] = float(all.varentropy());
    results.max_prob[row] = float(exp(-all.log_sum));
    results.maximum[row] = all.maximum;
    results.log_sum[row] = float(all.log_sum);
    if (wanted.token_ids)
      results.log_prob[row] = all.log_prob(logit_at(at, vocab, wanted.token_ids[row]), inverse);
  }
  if constexpr (TOP) {
    gathered.keep(wanted.top_k);
    for (int64_t i = threadIdx.x; i < wanted.top_k; i += row_threads) {
      const unsigned long long entry = entries[i];
      const float x = from_rising_bits(uint32_t(entry >> 32));
      results.top_log_probs[row * wanted.top_k + i] = all.log_prob(x, inverse);
      results.top_ids[row * wanted.top_k + i] = int64_t(~uint32_t(entry));
    }
  }
}

// What the gradient of each row needs; `token_ids` and `grad_log_prob` are null without tokens.
struct Upstream {
  const int64_t* token_ids;
  const float *maximum, *log_sum, *entropy;
  const float *grad_log_z, *grad_entropy, *grad_log_prob;
  float temperature;
};

// p (log z's gradient - token's gradient - entropy's gradient (log p + entropy)), and the token's
// own share, all over the temperature.
template <class T>
__global__ void __launch_bounds__(row_threads)
    token_gradient_kernel(const T* __restrict__ logits, Upstream up, T* __restrict__ gradient,
                          int64_t vocab, bool aligned) {
  const int64_t row = blockIdx.x;
  const float inverse = 1 / up.temperature, maximum = up.maximum[row], log_sum = up.log_sum[row];
  const int64_t id = up.token_ids ? up.token_ids[row] : -1;
  const float token = up.token_ids ? up.grad_log_prob[row] : 0.f, uncertain = up.grad_entropy[row];
  const float plain = up.grad_log_z[row] - token - uncertain * up.entropy[row];
  for (int64_t first = int64_t(threadIdx.x) * group; first < vocab; first += row_threads * group) {
    float values[group];
    load_group(logits + row * vocab + first, vocab - first, aligned, values);
#pragma unroll
    for (int i = 0; i < group; ++i) {
      const float log_p = (values[i] - maximum) * inverse - log_sum;
      // 0 log 0 is 0.
      const float finite = log_p < -100.f ? -100.f : log_p;
      values[i] = expf(log_p) * (plain - uncertain * finite) * inverse;
      if (first + i == id)
        values[i] += token * inverse;
    }
    store_group(gradient + row * vocab + first, vocab - first, aligned, values);
  }
}

template <class T>
void token_statistics(const T* logits, const Wanted& wanted, const Results& results, int64_t rows,
                      int64_t vocab, cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(logits, vocab, rows);
  const dim3 grid(grid_x(rows)), block(row_threads);
  if (wanted.top_k > 0)
    PETKIT_LAUNCH((token_statistics_kernel<T, true>), grid, block, 0, stream, logits, wanted,
                  results, vocab, aligned);
  else
    PETKIT_LAUNCH((token_statistics_kernel<T, false>), grid, block, 0, stream, logits, wanted,
                  results, vocab, aligned);
}

template <class T>
void token_statistics_backward(const T* logits, const Upstream& upstream, T* gradient, int64_t rows,
                               int64_t vocab, cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(logits, vocab, rows) && groups_aligned(gradient, vocab, rows);
  PETKIT_LAUNCH((token_gradient_kernel<T>), dim3(grid_x(rows)), dim3(row_threads), 0, stream,
                logits, upstream, gradient, vocab, aligned);
}

} // namespace petkit::cuda
