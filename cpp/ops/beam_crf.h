// What the beam CRF operators share: checks, the candidates of each position, and the sequences
// that the kernels read.
#pragma once

#include <cmath>
#include <cstring>
#include <numeric>

#include "crf.h"
#include "largest.h"

namespace petkit {

template <class Real> const BeamKernels<Real>& beam_kernels();
template <> inline const BeamKernels<float>& beam_kernels<float>() { return kernels().beam_crf; }
template <> inline const BeamKernels<double>& beam_kernels<double>() {
  return beam_double_kernels();
}

// The arguments that both operators begin with, checked. `dynamic` and `targets` hold nothing when
// they were not given.
struct BeamTensors {
  Tensor emissions, mask, left, right, dynamic, targets;
  int64_t batch, time, vocab, rank, beam;

  BeamTensors(const Tensor& emissions_, const Tensor& mask_, const Tensor& left_,
              const Tensor& right_, const Tensor& dynamic_, const Tensor& targets_, int64_t beam_)
      : emissions(emissions_), mask(torch::stable::contiguous(mask_)),
        left(torch::stable::contiguous(left_)), right(torch::stable::contiguous(right_)),
        dynamic(torch::stable::contiguous(dynamic_)), targets(torch::stable::contiguous(targets_)) {
    check_rank(emissions, "emissions", 3);
    check_rank(left, "left", 2);
    batch = emissions.size(0), time = emissions.size(1), vocab = emissions.size(2);
    rank = left.size(1);
    STD_TORCH_CHECK(vocab > 0 && vocab < (int64_t(1) << 31), "emissions must have 1 to 2**31 - 1 ",
                    "entries of a vocabulary, got ", vocab);
    STD_TORCH_CHECK(time < (int64_t(1) << 31), "time must be below 2**31, got ", time);
    STD_TORCH_CHECK(beam_ >= 1, "beam must be at least 1, got ", beam_);
    beam = std::min(beam_, vocab);
    STD_TORCH_CHECK(beam <= 65536, "beam must be at most 65536, got ", beam);
    check_dtype(mask, "mask", ScalarType::Bool);
    CrfTensors::check_shape(mask, "mask", {batch, time});
    CrfTensors::check_shape(left, "left", {vocab, rank});
    CrfTensors::check_shape(right, "right", {vocab, rank});
    if (is_dynamic())
      CrfTensors::check_shape(dynamic, "dynamic",
                              {batch, std::max<int64_t>(time - 1, 0), rank, rank});
    if (emissions.stride(2) != 1)
      emissions = torch::stable::contiguous(emissions);
    check_targets();
  }

  bool is_dynamic() const { return dynamic.dim() == 4; }
  bool has_targets() const { return targets.dim() == 2; }
  bool set(int64_t row, int64_t t) const {
    return static_cast<const bool*>(mask.const_data_ptr())[row * time + t];
  }
  int64_t target(int64_t row, int64_t t) const {
    return static_cast<const int64_t*>(targets.const_data_ptr())[row * time + t];
  }
  const char* emission_row(int64_t row, int64_t t) const {
    return static_cast<const char*>(emissions.const_data_ptr()) +
           (row * emissions.stride(0) + t * emissions.stride(1)) * element_bytes(emissions);
  }

private:
  void check_targets() const {
    if (has_targets()) {
      check_dtype(targets, "targets", ScalarType::Long);
      CrfTensors::check_shape(targets, "targets", {batch, time});
    }
    for (int64_t b = 0; b < batch && time > 0; ++b) {
      STD_TORCH_CHECK(set(b, 0), "mask must be set at time 0, but is not in row ", b);
      for (int64_t t = 0; t < time && has_targets(); ++t)
        STD_TORCH_CHECK(!set(b, t) || (target(b, t) >= 0 && target(b, t) < vocab),
                        "targets must lie between 0 and ", vocab - 1, ", got ", target(b, t),
                        " in row ", b, " at time ", t);
    }
  }
};

template <class Real> Real emission_at(const char* row, DType dtype, int64_t i) {
  Real value;
  if constexpr (sizeof(Real) == sizeof(double))
    std::memcpy(&value, row + i * int64_t(sizeof(double)), sizeof value);
  else
    kernels().to_float(row + i * item_size(dtype), dtype, &value, 1);
  return value;
}

// Finds the largest emissions of a row, in falling order, of equal ones the lower entry first.
class BeamScan {
public:
  explicit BeamScan(int64_t beam) : beam_(beam), largest_(beam) {}

  // False when there is a nan.
  bool run(const char* row, DType dtype, int64_t vocab, int32_t* candidates, float* values) {
    largest_.clear();
    for (int64_t first = 0; first < vocab; first += block_size) {
      const int64_t count = std::min(block_size, vocab - first);
      largest_.add(wide(row + first * item_size(dtype), dtype, count), count, first);
    }
    for (const LargestEntry& entry : largest_.sorted(row, dtype, vocab))
      *candidates++ = int32_t(entry.position()), *values++ = entry.value();
    return !largest_.has_nan();
  }
  bool run(const char* row, DType, int64_t vocab, int32_t* candidates, double* values) {
    const double* x = reinterpret_cast<const double*>(row);
    order_.resize(size_t(vocab));
    std::iota(order_.begin(), order_.end(), 0);
    for (int64_t i = 0; i < vocab; ++i)
      if (x[i] != x[i])
        return false;
    std::partial_sort(order_.begin(), order_.begin() + beam_, order_.end(),
                      [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    for (int64_t i = 0; i < beam_; ++i)
      candidates[i] = order_[size_t(i)], values[i] = x[order_[size_t(i)]];
    return true;
  }

private:
  const float* wide(const char* block, DType dtype, int64_t count) {
    if (dtype == DType::float32)
      return reinterpret_cast<const float*>(block);
    kernels().to_float(block, dtype, buffer_, count);
    return buffer_;
  }

  int64_t beam_;
  Largest largest_;
  std::vector<int32_t> order_;
  float buffer_[block_size];
};

// One sequence of a batch as the kernels read it, and room for its forward variables.
template <class Real> class BeamRow {
public:
  BeamRow(const BeamTensors& in, const BeamFactors<Real>& factors)
      : in_(in), stride_(factors.stride()), dtype_(crf_dtype<Real>(in.emissions, "emissions")),
        scan_(in.beam), candidates_(size_t(in.time * in.beam)), unary_(size_t(in.time * stride_)),
        alphas_(unary_.size()), offsets_(size_t(in.time)), dynamic_(size_t(in.time)),
        scratch_(size_t(beam_scratch(in.beam, in.rank))) {}

  // Reads the candidates of a row again that `find` has written, and their emissions.
  void read(int64_t row, const int32_t* candidates) {
    begin(row);
    for (int64_t i = 0; i < length(); ++i) {
      std::memcpy(&candidates_[size_t(i * in_.beam)], candidates + positions[size_t(i)] * in_.beam,
                  size_t(in_.beam) * sizeof(int32_t));
      fill_unary(i);
    }
  }
  // Finds the candidates of a row; masked positions get -1. Without a number among the emissions,
  // false.
  bool find(int64_t row, int32_t* candidates) {
    begin(row);
    std::fill(candidates, candidates + in_.time * in_.beam, -1);
    bool numbers = true;
    for (int64_t i = 0; i < length(); ++i) {
      const int64_t t = positions[size_t(i)];
      int32_t* found = &candidates_[size_t(i * in_.beam)];
      Real* values = &unary_[size_t(i * stride_)];
      if (!scan_.run(in_.emission_row(row, t), dtype_, in_.vocab, found, values))
        return false;
      for (int64_t j = in_.beam; j < stride_; ++j)
        values[j] = none;
      numbers &= values[0] < -none;
      if (in_.has_targets())
        include(in_.target(row, t), i);
      std::memcpy(candidates + t * in_.beam, found, size_t(in_.beam) * sizeof(int32_t));
    }
    return numbers;
  }

  int64_t length() const { return int64_t(positions.size()); }
  BeamSequence<Real> sequence() const {
    return {length(), candidates_.data(), unary_.data(),
            in_.is_dynamic() ? dynamic_.data() : nullptr};
  }
  BeamForward<Real> forward() { return {alphas_.data(), offsets_.data()}; }
  Real* scratch() { return scratch_.data(); }
  int32_t candidate(int64_t step, int64_t place) const {
    return candidates_[size_t(step * in_.beam + place)];
  }
  Real unary(int64_t step, int64_t place) const { return unary_[size_t(step * stride_ + place)]; }

  // Score of a path of vocabulary entries, in double.
  double score(const BeamFactors<Real>& factors, const int64_t* path) const {
    double total = 0;
    for (int64_t i = 0; i < length(); ++i) {
      const char* row = in_.emission_row(row_, positions[size_t(i)]);
      total += double(emission_at<Real>(row, dtype_, path[i]));
      if (i > 0)
        total += transition(factors, i, path[i - 1], path[i]);
    }
    return total;
  }
  // D of the step into a position; null for the identity.
  const Real* matrix(int64_t step) const {
    return in_.is_dynamic() ? dynamic_[size_t(step)] : nullptr;
  }

  std::vector<int64_t> positions; // of the row that are set

private:
  static constexpr Real none = -std::numeric_limits<Real>::infinity();

  void begin(int64_t row) {
    row_ = row;
    positions.clear();
    for (int64_t t = 0; t < in_.time; ++t)
      if (in_.set(row, t))
        positions.push_back(t);
    // The matrix of a step is that of the position it leads to.
    const int64_t matrix = in_.rank * in_.rank;
    for (int64_t i = 1; i < length() && in_.is_dynamic(); ++i)
      dynamic_[size_t(i)] =
          crf_data<Real>(in_.dynamic) + (row * (in_.time - 1) + positions[size_t(i)] - 1) * matrix;
  }
  void fill_unary(int64_t i) {
    const char* row = in_.emission_row(row_, positions[size_t(i)]);
    Real* values = &unary_[size_t(i * stride_)];
    for (int64_t j = 0; j < stride_; ++j)
      values[j] = j < in_.beam
                      ? emission_at<Real>(row, dtype_, candidates_[size_t(i * in_.beam + j)])
                      : none;
  }
  // The target takes the place of the worst candidate unless it is one of them.
  void include(int64_t target, int64_t i) {
    int32_t* found = &candidates_[size_t(i * in_.beam)];
    if (std::find(found, found + in_.beam, int32_t(target)) != found + in_.beam)
      return;
    found[in_.beam - 1] = int32_t(target);
    const char* row = in_.emission_row(row_, positions[size_t(i)]);
    unary_[size_t(i * stride_ + in_.beam - 1)] = emission_at<Real>(row, dtype_, target);
  }
  double transition(const BeamFactors<Real>& factors, int64_t step, int64_t from,
                    int64_t to) const {
    const Real *left = factors.left + from * in_.rank, *right = factors.right + to * in_.rank;
    const Real* matrix = this->matrix(step);
    double total = 0;
    for (int64_t k = 0; k < in_.rank; ++k) {
      double onward = double(right[k]);
      if (matrix) {
        onward = 0;
        for (int64_t m = 0; m < in_.rank; ++m)
          onward += double(matrix[k * in_.rank + m]) * double(right[m]);
      }
      total += double(left[k]) * onward;
    }
    return total;
  }

  const BeamTensors& in_;
  int64_t stride_, row_ = 0;
  DType dtype_;
  BeamScan scan_;
  std::vector<int32_t> candidates_;
  std::vector<Real> unary_, alphas_;
  std::vector<double> offsets_;
  std::vector<const Real*> dynamic_;
  std::vector<Real> scratch_;
};

template <class Real> BeamFactors<Real> beam_factors(const BeamTensors& in) {
  for (const Tensor& factors : {in.left, in.right})
    check_dtype(factors, "left and right", crf_scalar_type<Real>());
  if (in.is_dynamic())
    check_dtype(in.dynamic, "dynamic", crf_scalar_type<Real>());
  return {crf_data<Real>(in.left), crf_data<Real>(in.right), in.rank, in.beam};
}

// Rows of the batch, those with the most set positions first.
inline std::vector<int64_t> by_length(const BeamTensors& in) {
  std::vector<int64_t> lengths(size_t(in.batch), 0), order(size_t(in.batch));
  for (int64_t b = 0; b < in.batch; ++b)
    for (int64_t t = 0; t < in.time; ++t)
      lengths[size_t(b)] += in.set(b, t);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[size_t(a)] > lengths[size_t(b)]; });
  return order;
}

} // namespace petkit
