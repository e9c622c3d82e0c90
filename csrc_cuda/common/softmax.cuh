// Softmax sums of a row of logits by one block of threads.
#pragma once

#include "numeric.cuh"
#include "reduce.cuh"

namespace petkit::cuda {

constexpr int row_threads = 256;
constexpr float log2_e = 1.44269504f;
constexpr double ln2 = 0.6931471805599453;
constexpr float least_exponent = -125.f; // 2 to this and to less counts nothing

// Sums over logits x with d = (x - maximum) log2(e) / temperature: of 2^d, d 2^d and d^2 2^d.
struct SoftmaxState {
  float maximum = -INFINITY, weight = 0, first = 0, second = 0;

  // Comparisons are written so that a nan stays one.
  __device__ void add(float x, float factor) {
    const float d = (x - maximum) * factor;
    const float exponent = d < least_exponent ? least_exponent : d;
    const float power = exp2f(exponent);
    weight += power;
    first += exponent * power;
    second += exponent * (exponent * power);
  }

  __device__ void raise(float higher, float factor) {
    if (maximum > -INFINITY) {
      const float down = (maximum - higher) * factor;
      const float shift = down < least_exponent ? least_exponent : down, shrink = exp2f(shift);
      second = shrink * (second + shift * (2 * first + shift * weight));
      first = shrink * (first + shift * weight);
      weight *= shrink;
    }
    maximum = higher;
  }

  __device__ void add(const float (&values)[group], int64_t valid, float factor) {
    const int64_t count = valid < group ? valid : group;
    float highest = -INFINITY;
    bool nan = false;
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (i < count) {
        highest = fmaxf(highest, values[i]);
        nan = nan || values[i] != values[i];
      }
    if (highest > maximum)
      raise(highest, factor);
    if (maximum == -INFINITY) {
      // Nothing but -infinity so far: no sum, unless a nan hides there.
      weight = nan ? NAN : weight;
      return;
    }
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (i < count)
        add(values[i], factor);
  }
};

// The sums of a whole row, in every thread of its block.
struct SoftmaxTotals {
  float maximum;
  double weight, first, second;
  double log_sum; // nan of a row of nothing but -infinity

  __device__ float log_z(double inverse_temperature) const {
    return weight == 0 ? -INFINITY : float(double(maximum) * inverse_temperature + log_sum);
  }
  __device__ double entropy() const { return log_sum - ln2 * (first / weight); }
  __device__ double varentropy() const {
    const double mean = first / weight, variance = second / weight - mean * mean;
    return ln2 * ln2 * (variance < 0 ? 0 : variance);
  }
  __device__ float log_prob(float x, double inverse_temperature) const {
    return float((double(x) - double(maximum)) * inverse_temperature - log_sum);
  }
};

// Every thread of the block must call it.
__device__ inline SoftmaxTotals block_totals(SoftmaxState own, float factor) {
  const float maximum = block_max(own.maximum);
  if (own.maximum < maximum)
    own.raise(maximum, factor);
  const double weight = block_sum(double(own.weight)), first = block_sum(double(own.first)),
               second = block_sum(double(own.second));
  return {maximum, weight, first, second, weight == 0 ? double(NAN) : log(weight)};
}

// nan for an id outside: ids cannot be checked before the launch without waiting for the device.
template <class T> __device__ inline float logit_at(const T* row, int64_t vocab, int64_t id) {
  return id >= 0 && id < vocab ? to_float(row[id]) : NAN;
}

// Calls f(first column) for the groups of a row that are this thread's.
template <class F> __device__ inline void over_groups(int64_t vocab, const F& f) {
  for (int64_t first = int64_t(threadIdx.x) * group; first < vocab; first += row_threads * group)
    f(first);
}

// Writes one value to a whole row.
template <class T>
__device__ inline void fill_row(T* row, int64_t vocab, bool aligned, float value) {
  float values[group];
#pragma unroll
  for (int i = 0; i < group; ++i)
    values[i] = value;
  over_groups(vocab,
              [&](int64_t first) { store_group(row + first, vocab - first, aligned, values); });
}

// A mask of rows, or none; rows where it is false are not read.
struct RowMask {
  const bool* kept;

  __device__ bool skips(int64_t row) const { return kept && !kept[row]; }
};

} // namespace petkit::cuda
