// What the CRF operators share: checks, a batch as sequences without their masked positions, and
// groups of them that threads take turns at.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "operator.h"

namespace petkit {

template <class Real> constexpr ScalarType crf_scalar_type();
template <> constexpr ScalarType crf_scalar_type<float>() { return ScalarType::Float; }
template <> constexpr ScalarType crf_scalar_type<double>() { return ScalarType::Double; }

template <class Real> const CrfKernels<Real>& crf_kernels();
template <> inline const CrfKernels<float>& crf_kernels<float>() { return kernels().crf; }
template <> inline const CrfKernels<double>& crf_kernels<double>() { return crf_double_kernels(); }

// Calls f(Real()) with the type that is computed in: double for double emissions, else float.
template <class F> auto with_crf_type(const Tensor& emissions, const F& f) {
  return emissions.scalar_type() == ScalarType::Double ? f(double()) : f(float());
}

template <class Real> DType crf_dtype(const Tensor& tensor, const char* name) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    check_dtype(tensor, name, ScalarType::Double);
    return DType::float32; // not looked at
  } else {
    return dtype_of(tensor, name);
  }
}

template <class Real> const Real* crf_data(const Tensor& tensor) {
  return static_cast<const Real*>(tensor.const_data_ptr());
}
template <class Real> Real* crf_out(const Tensor& tensor) {
  return static_cast<Real*>(tensor.mutable_data_ptr());
}

inline int64_t element_bytes(const Tensor& tensor) { return int64_t(tensor.element_size()); }

// The arguments that all CRF operators begin with, checked.
struct CrfTensors {
  Tensor emissions, mask, transitions, start, end;
  int64_t batch, time, tags;

  CrfTensors(const Tensor& emissions_, const Tensor& mask_, const Tensor& transitions_,
             const Tensor& start_, const Tensor& end_)
      : emissions(emissions_), mask(torch::stable::contiguous(mask_)),
        transitions(torch::stable::contiguous(transitions_)),
        start(torch::stable::contiguous(start_)), end(torch::stable::contiguous(end_)) {
    check_rank(emissions, "emissions", 3);
    batch = emissions.size(0), time = emissions.size(1), tags = emissions.size(2);
    STD_TORCH_CHECK(tags > 0, "emissions must have tags, got 0");
    STD_TORCH_CHECK(tags <= 65536, "emissions must have at most 65536 tags, got ", tags);
    STD_TORCH_CHECK(time < (int64_t(1) << 31), "time must be below 2**31, got ", time);
    check_dtype(mask, "mask", ScalarType::Bool);
    check_shape(mask, "mask", {batch, time});
    check_shape(transitions, "transitions", {tags, tags});
    check_shape(start, "start", {tags});
    check_shape(end, "end", {tags});
    // Rows of tags are read in one piece; batch and time may be laid out in any way.
    if (emissions.stride(2) != 1)
      emissions = torch::stable::contiguous(emissions);
    const bool* set = static_cast<const bool*>(mask.const_data_ptr());
    for (int64_t b = 0; b < batch && time > 0; ++b)
      STD_TORCH_CHECK(set[b * time], "mask must be set at time 0, but is not in row ", b);
  }

  static void check_shape(const Tensor& tensor, const char* name, std::vector<int64_t> shape) {
    check_rank(tensor, name, int64_t(shape.size()));
    for (size_t i = 0; i < shape.size(); ++i)
      STD_TORCH_CHECK(tensor.size(int64_t(i)) == shape[i], name, " must have ", shape[i],
                      " in dimension ", i, ", got ", tensor.size(int64_t(i)));
  }
};

// The transitions in all the forms that the kernels read. Numbers that are nan or +infinity show in
// `spoiled`.
template <class Real> class CrfParameters {
public:
  CrfParameters(const CrfTensors& in, bool with_scored) {
    for (const Tensor& tensor : {in.transitions, in.start, in.end})
      check_dtype(tensor, "transitions, start and end", crf_scalar_type<Real>());
    const int64_t tags = in.tags, stride = crf_stride(tags);
    scores_.assign(size_t(tags * stride), none);
    peaks_.assign(size_t(stride), none);
    start_ = padded(in.start, stride), end_ = padded(in.end, stride);
    const Real* transitions = crf_data<Real>(in.transitions);
    for (int64_t from = 0; from < tags; ++from)
      for (int64_t to = 0; to < tags; ++to) {
        const Real score = transitions[from * tags + to];
        note(score);
        scores_[size_t(from * stride + to)] = score;
        peaks_[size_t(to)] = std::max(peaks_[size_t(to)], score);
      }
    model_ = {tags,    stride,        scores_.data(), nullptr,    nullptr,
              nullptr, peaks_.data(), start_.data(),  end_.data()};
    with_scored_ = with_scored;
  }

  // What sums need and maxima do not.
  void make_weights() {
    const int64_t tags = model_.tags, stride = model_.stride;
    weights_.assign(size_t(tags * stride), 0);
    for (int64_t from = 0; from < tags; ++from)
      for (int64_t to = 0; to < stride; ++to)
        weights_[size_t(from * stride + to)] =
            peaks_[size_t(to)] == none ? 0
                                       : scores_[size_t(from * stride + to)] - peaks_[size_t(to)];
    crf_kernels<Real>().exponentials(weights_.data(), tags * stride);
    model_.weights = weights_.data();
  }

  void make_backward_weights() {
    const int64_t tags = model_.tags, stride = model_.stride;
    transposed_.assign(size_t(tags * stride), 1);
    for (int64_t from = 0; from < tags; ++from)
      for (int64_t to = 0; to < tags; ++to)
        transposed_[size_t(to * stride + from)] = weights_[size_t(from * stride + to)];
    model_.weights_t = transposed_.data();
    if (!with_scored_)
      return;
    scored_.assign(size_t(tags * stride), 0);
    for (int64_t from = 0; from < tags; ++from)
      for (int64_t to = 0; to < tags; ++to) {
        const Real score = scores_[size_t(from * stride + to)];
        if (score > none)
          scored_[size_t(to * stride + from)] = transposed_[size_t(to * stride + from)] * score;
      }
    model_.scored_t = scored_.data();
  }

  const CrfModel<Real>& model() const { return model_; }
  bool spoiled() const { return spoiled_; }

private:
  static constexpr Real none = -std::numeric_limits<Real>::infinity();

  void note(Real score) { spoiled_ |= !(score < std::numeric_limits<Real>::infinity()); }
  std::vector<Real> padded(const Tensor& tensor, int64_t stride) {
    std::vector<Real> row(size_t(stride), none);
    for (int64_t i = 0; i < tensor.numel(); ++i)
      note(row[size_t(i)] = crf_data<Real>(tensor)[i]);
    return row;
  }

  std::vector<Real> scores_, weights_, transposed_, scored_, peaks_, start_, end_;
  CrfModel<Real> model_{};
  bool spoiled_ = false, with_scored_;
};

// The sequences of a batch without their masked positions, the longest first. Rows of weight 0 are
// left out: whatever they hold, nan too, adds nothing.
template <class Real> class CrfBatch {
public:
  explicit CrfBatch(const CrfTensors& in, const Real* weights = nullptr) {
    const DType dtype = crf_dtype<Real>(in.emissions, "emissions");
    const bool* set = static_cast<const bool*>(in.mask.const_data_ptr());
    positions_.resize(size_t(in.batch * in.time));
    std::vector<CrfSequence> unsorted(size_t(in.batch));
    const int64_t item = element_bytes(in.emissions);
    for (int64_t b = 0; b < in.batch; ++b) {
      int32_t* positions = positions_.data() + b * in.time;
      int64_t length = 0;
      for (int64_t t = 0; t < in.time; ++t)
        if (set[b * in.time + t])
          positions[length++] = int32_t(t);
      unsorted[size_t(b)] = {static_cast<const char*>(in.emissions.const_data_ptr()) +
                                 b * in.emissions.stride(0) * item,
                             in.emissions.stride(1) * item, dtype, positions, length};
    }
    for (int64_t b = 0; b < in.batch; ++b)
      if (!weights || weights[b] != 0)
        order.push_back(b);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return unsorted[size_t(a)].length > unsorted[size_t(b)].length;
    });
    for (const int64_t b : order)
      sequences.push_back(unsorted[size_t(b)]);
    // Side by side while the forward variables of a group stay small.
    const int64_t row = in.time * crf_stride(in.tags) * int64_t(sizeof(Real));
    width_ = row * crf_group > largest_group_bytes ? 1 : crf_group;
  }

  int64_t groups() const { return (int64_t(order.size()) + width_ - 1) / width_; }
  int64_t first(int64_t group) const { return group * width_; }
  CrfGroup group(int64_t index) const {
    const int64_t rest = int64_t(order.size()) - first(index);
    return {sequences.data() + first(index), int(std::min<int64_t>(width_, rest))};
  }
  int64_t longest() const { return sequences.empty() ? 0 : sequences[0].length; }

  std::vector<int64_t> order; // row of the batch of each sequence
  std::vector<CrfSequence> sequences;

private:
  static constexpr int64_t largest_group_bytes = 64 << 20;
  int64_t width_;
  std::vector<int32_t> positions_;
};

// Room for the forward variables of one group at a time.
template <class Real> class CrfWorkspace {
public:
  CrfWorkspace(int64_t steps, int64_t stride, bool keep)
      : scratch(size_t(crf_scratch(stride))),
        alphas_(size_t((keep ? steps : 2) * crf_group * stride)),
        offsets_(size_t((keep ? steps : 2) * crf_group)), keep_(keep) {}

  CrfForward<Real> forward() { return {alphas_.data(), offsets_.data(), keep_}; }
  std::vector<Real> scratch;

private:
  std::vector<Real> alphas_;
  std::vector<double> offsets_;
  bool keep_;
};

// Work is dealt to slots like cards, group by group from the longest, so that they get about as
// much; a slot's sums do not depend on how many threads there are.
template <class F> void over_slots(int64_t slots, const F& f) {
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot)
      f(slot);
  });
}

template <class Real> Tensor crf_new(const CrfTensors& in, std::vector<int64_t> shape) {
  return torch::stable::new_empty(in.transitions, shape, crf_scalar_type<Real>());
}

} // namespace petkit
