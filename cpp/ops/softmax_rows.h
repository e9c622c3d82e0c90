// Softmax statistics of rows of logits, as the operators read them: one row after another, in
// blocks.
#pragma once

#include <cmath>
#include <limits>

#include "largest.h"
#include "operator.h"

namespace petkit {

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();
inline constexpr int64_t grain_logits = 1 << 15; // logits worth a thread's while

// What one row has gathered so far: sums over d = (x - maximum) log2(e) / temperature, as in
// SoftmaxSums. Blocks are merged in double.
class RowState {
public:
  explicit RowState(double factor) : factor_(factor) {}

  float maximum() const { return sums_.maximum; }

  void merge(const SoftmaxSums& block) {
    if (block.maximum > sums_.maximum && sums_.weight > 0) {
      // All earlier d move down by the same distance.
      const double down = factor_ * (double(sums_.maximum) - double(block.maximum));
      const double shrink = std::exp2(down);
      sums_.second = shrink * (sums_.second + down * (2 * sums_.first + down * sums_.weight));
      sums_.first = shrink * (sums_.first + down * sums_.weight);
      sums_.weight *= shrink;
    }
    sums_.maximum = block.maximum;
    sums_.weight += block.weight, sums_.first += block.first, sums_.second += block.second;
  }

  // log(sum of exp((x - maximum) / temperature)); nan for a row of nothing but -infinity.
  double log_sum() const { return sums_.weight == 0 ? nan : std::log(sums_.weight); }
  double log_z(double inverse_temperature) const {
    return sums_.weight == 0 ? -infinity : sums_.maximum * inverse_temperature + log_sum();
  }
  double entropy() const { return log_sum() - ln2 * sums_.first / sums_.weight; }
  double varentropy() const {
    const double mean = sums_.first / sums_.weight;
    const double variance = sums_.second / sums_.weight - mean * mean;
    return ln2 * ln2 * (variance < 0 ? 0 : variance);
  }

private:
  double factor_;
  SoftmaxSums sums_{-infinity, 0, 0, 0, -infinity};
};

inline void check_rows(const Tensor& logits, double temperature) {
  check_rank(logits, "logits", 2);
  STD_TORCH_CHECK(logits.size(1) > 0, "logits must have a vocabulary, got 0 columns");
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature),
                  "temperature must be positive, got ", temperature);
}

// One row after another of a call; each thread has its own.
class Rows {
public:
  Rows(const Tensor& logits, int64_t top_k, double temperature)
      : data_(static_cast<const char*>(logits.const_data_ptr())),
        dtype_(dtype_of(logits, "logits")), vocab_(logits.size(1)), inverse_(1 / temperature),
        factor_(log2_e / temperature),
        // What lies this far below the maximum adds less than 4e-11 of the sum to it.
        gap_(float((std::log(double(vocab_)) + 24) * temperature)), largest_(top_k) {}

  RowState read(int64_t row) {
    RowState state(factor_);
    largest_.clear();
    for (int64_t first = 0; first < vocab_; first += block_size) {
      const int64_t count = std::min(block_size, vocab_ - first);
      const char* block = place(row, first);
      const SoftmaxSums sums =
          kernels().softmax_sums(block, dtype_, count, float(factor_), state.maximum(), gap_);
      state.merge(sums);
      if (largest_.wants(sums.highest))
        largest_.add(wide(block, count), count, first);
    }
    return state;
  }
  double log_prob(const RowState& state, int64_t row, int64_t id) const {
    float x;
    kernels().to_float(place(row, id), dtype_, &x, 1);
    return (double(x) - state.maximum()) * inverse_ - state.log_sum();
  }
  void write_largest(const RowState& state, int64_t row, float* log_probs, int64_t* ids) {
    for (const LargestEntry& entry : largest_.sorted(place(row, 0), dtype_, vocab_)) {
      *log_probs++ = float((double(entry.value()) - state.maximum()) * inverse_ - state.log_sum());
      *ids++ = entry.position();
    }
  }
  double inverse_temperature() const { return inverse_; }

private:
  const char* place(int64_t row, int64_t column) const {
    return data_ + (row * vocab_ + column) * item_size(dtype_);
  }
  const float* wide(const char* block, int64_t count) {
    if (dtype_ == DType::float32)
      return reinterpret_cast<const float*>(block);
    kernels().to_float(block, dtype_, buffer_, count);
    return buffer_;
  }

  const char* data_;
  DType dtype_;
  int64_t vocab_;
  double inverse_, factor_;
  float gap_;
  Largest largest_;
  float buffer_[block_size];
};

inline int64_t row_grain(int64_t vocab) { return std::max<int64_t>(1, grain_logits / vocab); }

} // namespace petkit
