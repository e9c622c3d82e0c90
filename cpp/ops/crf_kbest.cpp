// crf_kbest on the CPU: each tag keeps its k best prefixes in falling order.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "crf.h"

namespace petkit {
namespace {

// A prefix that can be extended: its score, its tag and its rank among those of the tag.
template <class Real> struct Entry {
  Real score;
  int32_t tag, rank;
  bool operator<(const Entry& other) const {
    // Of equal scores the lower tag, then the lower rank, comes first out of a heap.
    if (score != other.score)
      return score < other.score;
    return tag != other.tag ? tag > other.tag : rank > other.rank;
  }
};

template <class Real> class Lists {
public:
  Lists(const CrfModel<Real>& model, int64_t longest, int64_t k)
      : model_(model), k_(k), best_(size_t(model.tags * k)), next_(best_.size()),
        emissions_(size_t(model.tags)), pointers_(size_t(longest * model.tags * k)) {
    heap_.reserve(size_t(model.tags));
  }

  // Fills up to k paths of one sequence and their scores; returns how many there are. A sequence
  // with a nan or +infinity has one path, of score nan.
  int64_t run(const CrfSequence& sequence, int64_t* paths, double* scores) {
    bool spoiled = false;
    for (int64_t step = 0; step < sequence.length; ++step) {
      read(sequence, step, spoiled);
      if (step == 0)
        begin();
      else
        extend(step);
      take_out_best();
    }
    const int64_t found = finish(sequence, paths, scores);
    if (!spoiled)
      return found;
    scores[0] = std::nan("");
    return 1;
  }

private:
  static constexpr Real none = -std::numeric_limits<Real>::infinity();

  void read(const CrfSequence& sequence, int64_t step, bool& spoiled) {
    const char* row = sequence.emissions + sequence.positions[step] * sequence.row_bytes;
    if constexpr (sizeof(Real) == sizeof(double))
      std::memcpy(emissions_.data(), row, emissions_.size() * sizeof(Real));
    else
      kernels().to_float(row, sequence.dtype, emissions_.data(), model_.tags);
    for (Real x : emissions_)
      spoiled |= !(x < std::numeric_limits<Real>::infinity());
  }
  void begin() {
    std::fill(best_.begin(), best_.end(), none);
    for (int64_t tag = 0; tag < model_.tags; ++tag)
      best_[size_t(tag * k_)] = model_.start[tag] + emissions_[size_t(tag)];
  }

  // The best prefix of every tag stands in a heap; whichever is taken makes room for its tag's
  // next. Calls take(rank, entry) for up to k entries in falling order; `gain(tag)` is what a tag
  // adds.
  template <class Gain, class Take> int64_t merge(const Gain& gain, const Take& take) {
    heap_.clear();
    const auto offer = [&](int32_t tag, int32_t rank) {
      const Real score = rank < k_ ? best_[size_t(tag * k_ + rank)] + gain(tag) : none;
      if (score > none) {
        heap_.push_back({score, tag, rank});
        std::push_heap(heap_.begin(), heap_.end());
      }
    };
    for (int64_t tag = 0; tag < model_.tags; ++tag)
      offer(int32_t(tag), 0);
    int64_t taken = 0;
    for (; taken < k_ && !heap_.empty(); ++taken) {
      const Entry<Real> entry = heap_.front();
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
      take(taken, entry);
      offer(entry.tag, entry.rank + 1);
    }
    return taken;
  }

  void extend(int64_t step) {
    std::fill(next_.begin(), next_.end(), none);
    for (int64_t to = 0; to < model_.tags; ++to)
      merge([&](int32_t from) { return model_.scores[from * model_.stride + to]; },
            [&](int64_t rank, const Entry<Real>& entry) {
              next_[size_t(to * k_ + rank)] = entry.score + emissions_[size_t(to)];
              pointers_[size_t((step * model_.tags + to) * k_ + rank)] =
                  int32_t(entry.tag * k_ + entry.rank);
            });
    best_.swap(next_);
  }
  void take_out_best() {
    const Real peak = *std::max_element(best_.begin(), best_.end());
    if (peak > none)
      for (Real& score : best_)
        score -= peak;
  }

  int64_t finish(const CrfSequence& sequence, int64_t* paths, double* scores) {
    return merge([&](int32_t tag) { return model_.end[tag]; },
                 [&](int64_t rank, const Entry<Real>& entry) {
                   scores[rank] = trace(sequence, entry, paths + rank * sequence.length);
                 });
  }
  double trace(const CrfSequence& sequence, const Entry<Real>& last, int64_t* path) const {
    int64_t at = last.tag * k_ + last.rank;
    double score = double(model_.end[last.tag]);
    for (int64_t step = sequence.length - 1; step >= 0; --step) {
      const int64_t tag = at / k_;
      path[step] = tag;
      score += emission(sequence, step, tag);
      if (step > 0) {
        at = pointers_[size_t(step * model_.tags * k_ + at)];
        score += double(model_.scores[at / k_ * model_.stride + tag]);
      }
    }
    return score + double(model_.start[path[0]]);
  }
  double emission(const CrfSequence& sequence, int64_t step, int64_t tag) const {
    const char* row = sequence.emissions + sequence.positions[step] * sequence.row_bytes;
    Real x;
    if constexpr (sizeof(Real) == sizeof(double))
      std::memcpy(&x, row + tag * int64_t(sizeof(Real)), sizeof x);
    else
      kernels().to_float(row + tag * item_size(sequence.dtype), sequence.dtype, &x, 1);
    return double(x);
  }

  const CrfModel<Real>& model_;
  int64_t k_;
  std::vector<Real> best_, next_, emissions_;
  std::vector<int32_t> pointers_;
  std::vector<Entry<Real>> heap_;
};

using Paths = std::tuple<Tensor, Tensor>;

template <class Real> Paths kbest(const CrfTensors& in, int64_t k) {
  const CrfParameters<Real> parameters(in, false);
  const CrfBatch<Real> batch(in);
  const Tensor paths = torch::stable::new_empty(
      in.mask, std::array<int64_t, 3>{in.batch, k, in.time}, ScalarType::Long);
  const Tensor scores = crf_new<Real>(in, {in.batch, k});
  std::fill(crf_out<int64_t>(paths), crf_out<int64_t>(paths) + paths.numel(), -1);
  std::fill(crf_out<Real>(scores), crf_out<Real>(scores) + scores.numel(),
            -std::numeric_limits<Real>::infinity());
  const int64_t slots = std::min<int64_t>(in.batch, 64);
  over_slots(slots, [&](int64_t slot) {
    Lists<Real> lists(parameters.model(), batch.longest(), k);
    std::vector<int64_t> found_paths(size_t(k * batch.longest()));
    std::vector<double> found_scores(static_cast<size_t>(k));
    for (int64_t i = slot; i < in.batch; i += slots) {
      const CrfSequence& sequence = batch.sequences[size_t(i)];
      const int64_t row = batch.order[size_t(i)];
      Real* score_row = crf_out<Real>(scores) + row * k;
      if (sequence.length == 0) {
        score_row[0] = 0;
        continue;
      }
      const int64_t found = lists.run(sequence, found_paths.data(), found_scores.data());
      if (parameters.spoiled())
        score_row[0] = Real(std::nan(""));
      for (int64_t rank = 0; rank < found && !parameters.spoiled(); ++rank) {
        score_row[rank] = Real(found_scores[size_t(rank)]);
        int64_t* path = crf_out<int64_t>(paths) + (row * k + rank) * in.time;
        for (int64_t step = 0; step < sequence.length; ++step)
          path[sequence.positions[step]] = found_paths[size_t(rank * sequence.length + step)];
      }
    }
  });
  return {paths, scores};
}

Paths crf_kbest(const Tensor emissions, const Tensor mask, const Tensor transitions,
                const Tensor start, const Tensor end, int64_t k) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1, got ", k);
  STD_TORCH_CHECK(in.tags * k < (int64_t(1) << 31), "tags * k must be below 2**31, got ", in.tags,
                  " * ", k);
  return with_crf_type(emissions, [&](auto real) { return kbest<decltype(real)>(in, k); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) { m.impl("crf_kbest", TORCH_BOX(&petkit::crf_kbest)); }
