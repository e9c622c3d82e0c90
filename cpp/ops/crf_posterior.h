// Marginals and expectations of a batch: forward and backward recursion, group by group.
#pragma once

#include "crf.h"

namespace petkit {

template <class Real> class CrfPosterior {
public:
  // Writes marginals times the weight of each row to `marginals` (batch, time, tags), and 0 at
  // masked positions and for rows of weight 0. Without weights they are 1. `with_scores` asks for
  // the expected score of the transitions.
  CrfPosterior(const CrfTensors& in, const Tensor& marginals, const Real* weights, bool with_scores)
      : log_z(size_t(in.batch)), scores(size_t(in.batch)), tags_(in.tags),
        stride_(crf_stride(in.tags)), parameters_(in, with_scores), batch_(in, weights) {
    parameters_.make_weights();
    parameters_.make_backward_weights();
    const int64_t row_bytes = in.tags * element_bytes(marginals);
    char* rows = static_cast<char*>(marginals.mutable_data_ptr());
    // A slot holds sums over pairs of tags: few slots where those are large.
    slots_ = std::max<int64_t>(2, largest_sums_bytes / (sums_size() * int64_t(sizeof(Real))));
    slots_ = std::min({slots_, batch_.groups(), int64_t(64)});
    sums_.assign(size_t(slots_ * sums_size()), 0);
    if (in.time == 0)
      return;
    std::memset(rows, 0, size_t(in.batch * in.time * row_bytes));
    const DType dtype = crf_dtype<Real>(marginals, "marginals");
    over_slots(slots_, [&](int64_t slot) {
      CrfWorkspace<Real> workspace(batch_.longest(), stride_, true);
      for (int64_t g = slot; g < batch_.groups(); g += slots_) {
        const CrfGroup group = batch_.group(g);
        CrfTarget targets[crf_group];
        for (int r = 0; r < group.count; ++r) {
          const int64_t row = batch_.order[size_t(batch_.first(g) + r)];
          targets[r] = {rows + row * in.time * row_bytes, row_bytes, dtype,
                        weights ? double(weights[row]) : 1.0};
        }
        run(group, batch_.first(g), targets, slot_sums(slot), workspace);
      }
    });
  }

  // The sums of all slots in their order, so that threads do not change a bit.
  void sums(Real* pairs, Real* start, Real* end) const {
    std::vector<Real> total(size_t(sums_size()), 0);
    for (int64_t slot = 0; slot < slots_; ++slot)
      for (int64_t i = 0; i < sums_size(); ++i)
        total[size_t(i)] += sums_[size_t(slot * sums_size() + i)];
    for (int64_t from = 0; from < tags_; ++from)
      std::copy_n(total.data() + from * stride_, tags_, pairs + from * tags_);
    std::copy_n(total.data() + tags_ * stride_, tags_, start);
    std::copy_n(total.data() + (tags_ + 1) * stride_, tags_, end);
  }

  std::vector<double> log_z, scores; // of each row of the batch

private:
  static constexpr int64_t largest_sums_bytes = 64 << 20;

  int64_t sums_size() const { return (tags_ + 2) * stride_; }
  CrfSums<Real> slot_sums(int64_t slot) {
    Real* pairs = sums_.data() + slot * sums_size();
    return {pairs, pairs + tags_ * stride_, pairs + (tags_ + 1) * stride_};
  }
  void run(const CrfGroup& group, int64_t first, const CrfTarget* targets,
           const CrfSums<Real>& sums, CrfWorkspace<Real>& workspace) {
    double found[crf_group], expected[crf_group];
    Real* scratch = workspace.scratch.data();
    const CrfModel<Real>& model = parameters_.model();
    crf_kernels<Real>().forward(model, group, workspace.forward(), found, scratch);
    crf_kernels<Real>().backward(model, group, workspace.forward(), found, targets, sums, expected,
                                 scratch);
    for (int r = 0; r < group.count; ++r) {
      const int64_t row = batch_.order[size_t(first + r)];
      log_z[size_t(row)] = found[r], scores[size_t(row)] = expected[r];
    }
  }

  int64_t tags_, stride_, slots_;
  CrfParameters<Real> parameters_;
  CrfBatch<Real> batch_;
  std::vector<Real> sums_;
};

} // namespace petkit
