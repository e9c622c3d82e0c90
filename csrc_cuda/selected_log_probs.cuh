// Log-probabilities of a few tokens of each row of logits, one block a row and one read of it, and
// their gradient.
#pragma once

#include "common/softmax.cuh"

namespace petkit::cuda {

// Which tokens of which rows; `token_ids` is (rows, count).
struct Selection {
  const int64_t* token_ids;
  int64_t count;
  RowMask mask;
  float temperature;
};

struct SelectedResults {
  float* log_probs; // (rows, count)
  float *entropy, *maximum, *log_sum;
};

template <class T>
__global__ void __launch_bounds__(row_threads)
    selected_log_probs_kernel(const T* __restrict__ logits, Selection wanted,
                              SelectedResults results, int64_t vocab, bool aligned) {
  const int64_t row = blockIdx.x;
  const int64_t* ids = wanted.token_ids + row * wanted.count;
  float* log_probs = results.log_probs + row * wanted.count;
  if (wanted.mask.skips(row)) {
    for (int64_t j = threadIdx.x; j < wanted.count; j += row_threads)
      log_probs[j] = 0;
    if (threadIdx.x == 0)
      results.entropy[row] = results.maximum[row] = results.log_sum[row] = 0;
    return;
  }
  const T* at = logits + row * vocab;
  const float factor = log2_e / wanted.temperature;
  SoftmaxState own;
  over_groups(vocab, [&](int64_t first) {
    float values[group];
    load_group(at + first, vocab - first, aligned, values);
    own.add(values, vocab - first, factor);
  });
  const SoftmaxTotals all = block_totals(own, factor);
  const double inverse = 1 / double(wanted.temperature);
  for (int64_t j = threadIdx.x; j < wanted.count; j += row_threads)
    log_probs[j] = all.log_prob(logit_at(at, vocab, ids[j]), inverse);
  if (threadIdx.x == 0) {
    results.entropy[row] = float(all.entropy());
    results.maximum[row] = all.maximum;
    results.log_sum[row] = float(all.log_sum);
  }
}

// `chosen` is (rows, count) of scratch: the gradients of the tokens while the others are written.
struct SelectedUpstream {
  const float *maximum, *log_sum, *gradient;
  float* chosen;
};

// (the token's own gradients - p times those of all tokens) over the temperature. `gradient` may be
// the logits.
template <class T>
__global__ void __launch_bounds__(row_threads)
    selected_gradient_kernel(const T* logits, Selection wanted, SelectedUpstream up, T* gradient,
                             int64_t vocab, bool aligned) {
  const int64_t row = blockIdx.x, count = wanted.count;
  T* out = gradient + row * vocab;
  if (wanted.mask.skips(row))
    return fill_row(out, vocab, aligned, 0);
  const T* at = logits + row * vocab;
  const int64_t* ids = wanted.token_ids + row * count;
  const float *upstream = up.gradient + row * count, maximum = up.maximum[row],
              log_sum = up.log_sum[row], inverse = 1 / wanted.temperature;
  float* chosen = up.chosen + row * count;
  double own = 0;
  for (int64_t j = threadIdx.x; j < count; j += row_threads)
    own += double(upstream[j]);
  const float total = float(block_sum(own));
  const auto softmax_part = [&](float x) {
    return -expf((x - maximum) * inverse - log_sum) * total * inverse;
  };
  // While all logits are still there; a token that stands twice gets the same value twice.
  for (int64_t j = threadIdx.x; j < count; j += row_threads) {
    double of_token = 0;
    for (int64_t other = 0; other < count; ++other)
      of_token += ids[other] == ids[j] ? double(upstream[other]) : 0;
    chosen[j] = float(of_token) * inverse + softmax_part(logit_at(at, vocab, ids[j]));
  }
  __syncthreads();
  over_groups(vocab, [&](int64_t first) {
    float values[group];
    load_group(at + first, vocab - first, aligned, values);
#pragma unroll
    for (int i = 0; i < group; ++i)
      values[i] = softmax_part(values[i]);
    store_group(out + first, vocab - first, aligned, values);
  });
  __syncthreads();
  for (int64_t j = threadIdx.x; j < count; j += row_threads)
    if (ids[j] >= 0 && ids[j] < vocab)
      out[ids[j]] = from_float<T>(chosen[j]);
}

template <class T>
void selected_log_probs(const T* logits, const Selection& wanted, const SelectedResults& results,
                        int64_t rows, int64_t vocab, cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(logits, vocab, rows);
  PETKIT_LAUNCH((selected_log_probs_kernel<T>), dim3(grid_x(rows)), dim3(row_threads), 0, stream,
                logits, wanted, results, vocab, aligned);
}

template <class T>
void selected_log_probs_backward(const T* logits, const Selection& wanted,
                                 const SelectedUpstream& upstream, T* gradient, int64_t rows,
                                 int64_t vocab, cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(logits, vocab, rows) && groups_aligned(gradient, vocab, rows);
  PETKIT_LAUNCH((selected_gradient_kernel<T>), dim3(grid_x(rows)), dim3(row_threads), 0, stream,
                logits, wanted, upstream, gradient, vocab, aligned);
}

} // namespace petkit::cuda
