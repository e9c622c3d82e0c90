// The largest numbers of a row and where they are, found while the row is read once.
#pragma once

#include <functional>
#include <limits>
#include <vector>

#include "operator.h"
#include "petkit/half.h"

namespace petkit {

// A number and its position as one integer, which is compared in one instruction: the larger number
// comes first, of equal ones the earlier.
class LargestEntry {
public:
  LargestEntry(float value, int64_t position)
      // A sum with 0 makes one zero of two.
      : key_(uint64_t(ordered(bits_of(value + 0.0f))) << 32 | uint32_t(~position)) {}

  float value() const {
    const uint32_t bits = uint32_t(key_ >> 32);
    return float_of(bits & sign ? bits & ~sign : ~bits);
  }
  int64_t position() const { return int64_t(uint32_t(~key_)); }
  bool operator>(const LargestEntry& other) const { return key_ > other.key_; }

private:
  static constexpr uint32_t sign = 0x80000000;

  // Negative numbers have larger bits the smaller they are.
  static uint32_t ordered(uint32_t bits) { return bits & sign ? ~bits : bits | sign; }

  uint64_t key_;
};

// The k largest logits of a row, of equal ones the first, while the row passes by in blocks.
class Largest {
public:
  explicit Largest(int64_t k)
      : k_(size_t(k)), slack_(std::max<size_t>(k_, 8)),
        positions_(size_t(k > 0 ? block_size + 1 : 0)) {}

  void clear() { kept_.clear(), bound_ = none, has_nan_ = false; }
  bool wants(float block_maximum) const { return k_ > 0 && block_maximum > bound_; }

  // The bound is worth most at a row's start: without one every logit is kept, and sorted out.
  void add(const float* x, int64_t count, int64_t offset) {
    int64_t length = bound_ == none ? first_part : count;
    for (int64_t i = 0; i < count; i += length, length *= 2)
      add_part(x + i, std::min(length, count - i), offset + i);
  }

  // The k largest, in falling order; what is left over is -infinity.
  const std::vector<LargestEntry>& sorted(const char* row, DType dtype, int64_t count) {
    drop_smallest();
    if (kept_.size() < k_)
      fill_with_impossible(row, dtype, count);
    std::sort(kept_.begin(), kept_.end(), std::greater<LargestEntry>());
    return kept_;
  }
  // Has a nan come by since `clear`?
  bool has_nan() const { return has_nan_; }

private:
  static constexpr float none = -std::numeric_limits<float>::infinity();
  static constexpr int64_t first_part = 64;

  // Equal logits come later and lose, so only larger ones get in.
  void add_part(const float* x, int64_t count, int64_t offset) {
    const int64_t found = kernels().positions_above(x, count, bound_, positions_.data());
    for (int64_t i = 0; i < found; ++i) {
      const float value = x[positions_[i]];
      has_nan_ |= value != value;
      if (!(value > bound_))
        continue;
      kept_.push_back(LargestEntry(value, offset + positions_[i]));
      if (kept_.size() >= k_ + slack_)
        drop_smallest();
    }
  }

  // Sorting out many at once costs less than keeping the best ones in order.
  void drop_smallest() {
    if (kept_.size() <= k_)
      return;
    const auto last = kept_.begin() + std::ptrdiff_t(k_) - 1;
    std::nth_element(kept_.begin(), last, kept_.end(), std::greater<LargestEntry>());
    bound_ = last->value();
    kept_.erase(last + 1, kept_.end());
  }

  // -infinity is above no bound, so the first of those come in only when nothing else is left.
  void fill_with_impossible(const char* row, DType dtype, int64_t count) {
    for (int64_t i = 0; i < count && kept_.size() < k_; ++i) {
      float x;
      kernels().to_float(row + i * item_size(dtype), dtype, &x, 1);
      if (!(x > none))
        kept_.push_back(LargestEntry(x, i));
    }
  }

  // The bound is renewed whenever so many more than k are kept.
  size_t k_, slack_;
  float bound_ = none;
  bool has_nan_ = false;
  std::vector<LargestEntry> kept_;
  std::vector<int32_t> positions_;
};

} // namespace petkit
