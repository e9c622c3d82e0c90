// The recursions of beam CRFs for one instruction set `Isa`: each step makes the transitions
// between its candidates, uses them up and forgets them.
#pragma once

#include "crf_impl.h"

namespace petkit {
namespace {

// The transitions into one position as a model of `beam` tags. Behind the last candidate they are
// 0, and the unary scores keep those places out.
class BeamStep {
public:
  BeamStep(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence, Real*& scratch)
      : factors_(factors), sequence_(sequence), beam_(factors.beam), rank_(factors.rank),
        stride_(factors.stride()), rank_stride_(factors.rank_stride()) {
    const auto take = [&](int64_t size) {
      Real* part = scratch;
      scratch += size;
      return part;
    };
    scores_ = take(beam_ * stride_), weights_ = take(beam_ * stride_);
    left_ = take(beam_ * rank_stride_), turned_ = take(beam_ * rank_stride_);
    right_ = take(beam_ * rank_stride_), right_t_ = take(rank_ * stride_);
    matrix_ = take(rank_ * rank_stride_), peaks_ = take(stride_);
  }

  // Makes the scores of the transitions from position step - 1 to step.
  void score(int64_t step) {
    gather(factors_.left, step - 1, left_);
    gather(factors_.right, step, right_);
    transpose(right_, right_t_);
    Real* left = left_;
    if (sequence_.dynamic) {
      load_matrix(sequence_.dynamic[step]);
      product(left_, rank_stride_, 1, beam_, matrix_, rank_, rank_stride_, turned_);
      left = turned_;
    }
    product(left, rank_stride_, 1, beam_, right_t_, rank_, stride_, scores_);
  }

  // exp(score - peak of its column).
  void weigh() {
    each_vector(stride_, [&](int64_t i) {
      Isa::Float peak = Isa::load(scores_ + i);
      for (int64_t from = 1; from < beam_; ++from)
        peak = Isa::max(Isa::load(scores_ + from * stride_ + i), peak);
      Isa::store(peaks_ + i, peak);
      for (int64_t from = 0; from < beam_; ++from) {
        const int64_t place = from * stride_ + i;
        Isa::store(weights_ + place, exp_of(Isa::sub(Isa::load(scores_ + place), peak)));
      }
    });
  }

  CrfModel<Real> model() const {
    return {beam_, stride_, scores_, weights_, nullptr, nullptr, peaks_, nullptr, nullptr};
  }

  // From the gradient of the scores (beam, stride) those of the factors of both positions and of D.
  void factor_gradients(const Real* pairs, Real* left, Real* right, Real* matrix) {
    const Real* turned = sequence_.dynamic ? turned_ : left_;
    product(pairs, 1, stride_, beam_, turned, beam_, rank_stride_, right);
    if (!sequence_.dynamic) {
      product(pairs, stride_, 1, beam_, right_, beam_, rank_stride_, left);
      return;
    }
    // The gradient of left D lies where the right factors were.
    Real* of_turned = turned_;
    product(pairs, stride_, 1, beam_, right_, beam_, rank_stride_, of_turned);
    add_outer(of_turned, matrix);
    transpose_matrix();
    product(of_turned, rank_stride_, 1, beam_, matrix_, rank_, rank_stride_, left);
  }

private:
  void gather(const Real* table, int64_t step, Real* rows) const {
    const int32_t* candidates = sequence_.candidates + step * beam_;
    // The rows lie anywhere in a table that is larger than the caches.
    constexpr int64_t ahead = 8;
    for (int64_t i = 0; i < beam_; ++i) {
      if (i + ahead < beam_)
        for (int64_t k = 0; k < rank_; k += 64 / int64_t(sizeof(Real)))
          __builtin_prefetch(table + candidates[i + ahead] * rank_ + k);
      Real* row = rows + i * rank_stride_;
      std::memcpy(row, table + candidates[i] * rank_, size_t(rank_) * sizeof(Real));
      for (int64_t k = rank_; k < rank_stride_; ++k)
        row[k] = 0;
    }
  }
  void transpose(const Real* rows, Real* columns) const {
    for (int64_t k = 0; k < rank_; ++k) {
      Real* column = columns + k * stride_;
      for (int64_t i = 0; i < beam_; ++i)
        column[i] = rows[i * rank_stride_ + k];
      for (int64_t i = beam_; i < stride_; ++i)
        column[i] = 0;
    }
  }
  void load_matrix(const Real* matrix) {
    for (int64_t k = 0; k < rank_; ++k) {
      Real* row = matrix_ + k * rank_stride_;
      std::memcpy(row, matrix + k * rank_, size_t(rank_) * sizeof(Real));
      for (int64_t i = rank_; i < rank_stride_; ++i)
        row[i] = 0;
    }
  }
  void transpose_matrix() {
    for (int64_t i = 0; i < rank_; ++i)
      for (int64_t k = 0; k < i; ++k) {
        const Real swap = matrix_[i * rank_stride_ + k];
        matrix_[i * rank_stride_ + k] = matrix_[k * rank_stride_ + i];
        matrix_[k * rank_stride_ + i] = swap;
      }
  }
  void add_outer(const Real* of_turned, Real* matrix) const {
    for (int64_t k = 0; k < rank_; ++k)
      for (int64_t i = 0; i < beam_; ++i) {
        const Real weight = left_[i * rank_stride_ + k];
        for (int64_t m = 0; m < rank_; ++m)
          matrix[k * rank_ + m] += weight * of_turned[i * rank_stride_ + m];
      }
  }

  const BeamFactors<Real>& factors_;
  const BeamSequence<Real>& sequence_;
  int64_t beam_, rank_, stride_, rank_stride_;
  Real *scores_, *weights_, *left_, *turned_, *right_, *right_t_, *matrix_, *peaks_;
};

double beam_forward(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                    const BeamForward<Real>& result, Real* scratch) {
  const int64_t stride = factors.stride();
  BeamStep transitions(factors, sequence, scratch);
  Real *weights = scratch, *sums = weights + stride;
  double offset = 0;
  for (int64_t step = 0; step < sequence.length; ++step) {
    Real* alpha = result.alphas + step * stride;
    const Real* unary = sequence.unary + step * stride;
    if (step == 0) {
      std::memcpy(alpha, unary, size_t(stride) * sizeof(Real));
    } else {
      const Real* before = alpha - stride;
      transitions.score(step);
      transitions.weigh();
      const CrfModel<Real> model = transitions.model();
      row_exponentials(before, weights, stride);
      product(weights, stride, 1, 1, model.weights, model.tags, stride, sums);
      finish_step(model, before, sums, unary, alpha);
    }
    offset += double(take_out_peak(alpha, stride));
    result.offsets[step] = offset;
  }
  std::memcpy(weights, result.alphas + (sequence.length - 1) * stride,
              size_t(stride) * sizeof(Real));
  return offset + log_sum(weights, factors.beam);
}

// G = earlier weights, transition, later weights: the pair marginals times `weight`. Leaves the log
// of each row's sum over the later weights in `rest`.
void pair_marginals(const CrfModel<Real>& model, const Real* earlier, const Real* later,
                    double weight, Real* pairs, Real* rest) {
  for (int64_t from = 0; from < model.tags; ++from) {
    const Isa::Float scale = Isa::set(Real(weight) * earlier[from]);
    Isa::Float sum = Isa::set(0);
    each_vector(model.stride, [&](int64_t i) {
      const int64_t place = from * model.stride + i;
      const Isa::Float onward = Isa::mul(Isa::load(model.weights + place), Isa::load(later + i));
      sum = Isa::add(sum, onward);
      Isa::store(pairs + place, Isa::mul(scale, onward));
    });
    rest[from] = Isa::sum(sum);
  }
  each_vector(model.stride, [&](int64_t i) { Isa::store(rest + i, log_of(Isa::load(rest + i))); });
}

void beam_backward(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                   const BeamForward<Real>& forward, double log_z,
                   const BeamGradient<Real>& gradient, Real* scratch) {
  const int64_t stride = factors.stride(), beam = factors.beam;
  const int64_t rows = beam * factors.rank_stride(), last = sequence.length - 1;
  BeamStep transitions(factors, sequence, scratch);
  Real *pairs = scratch, *rest = pairs + beam * stride, *logs = rest + stride,
       *earlier = logs + stride, *later = earlier + stride;
  const Real start = Real(forward.offsets[last] - log_z);
  for (int64_t i = 0; i < stride; ++i)
    rest[i] = start;
  std::memset(gradient.left + last * rows, 0, size_t(rows) * sizeof(Real));
  std::memset(gradient.right, 0, size_t(rows) * sizeof(Real));
  for (int64_t step = last; step >= 0; --step) {
    const Real* alpha = forward.alphas + step * stride;
    Real* of_unary = gradient.unary + step * stride;
    Rest{stride, rest}.marginals(alpha, of_unary);
    scale_row(of_unary, gradient.weight, stride);
    if (step == 0)
      break;
    transitions.score(step);
    transitions.weigh();
    const CrfModel<Real> model = transitions.model();
    const Real down = Real(forward.offsets[step - 1] - forward.offsets[step]);
    const bool large =
        Rest{stride, rest}.weigh(model.peaks, sequence.unary + step * stride, down, later);
    row_exponentials(alpha - stride, earlier, stride);
    std::memcpy(logs, rest, size_t(stride) * sizeof(Real));
    pair_marginals(model, earlier, later, gradient.weight, pairs, rest);
    if (large)
      exact_pairs(model, alpha - stride, logs, gradient.weight, pairs, rest);
    transitions.factor_gradients(pairs, gradient.left + (step - 1) * rows,
                                 gradient.right + step * rows,
                                 sequence.dynamic ? gradient.dynamic[step] : nullptr);
  }
}

void beam_viterbi(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                  uint16_t* pointers, int64_t* places, Real* scratch) {
  const int64_t stride = factors.stride();
  BeamStep transitions(factors, sequence, scratch);
  Real *before = scratch, *best = before + stride, *source = best + stride;
  for (int64_t step = 0; step < sequence.length; ++step) {
    const Real* unary = sequence.unary + step * stride;
    if (step == 0) {
      std::memcpy(best, unary, size_t(stride) * sizeof(Real));
    } else {
      transitions.score(step);
      best_step(transitions.model(), before, best, source);
      write_pointers(source, pointers + step * stride, stride);
      each_vector(stride, [&](int64_t i) {
        Isa::store(best + i, Isa::add(Isa::load(best + i), Isa::load(unary + i)));
      });
    }
    take_out_peak(best, stride);
    Real* swap = before;
    before = best, best = swap;
  }
  int64_t place = 0;
  for (int64_t i = 1; i < factors.beam; ++i)
    if (before[i] > before[place])
      place = i;
  for (int64_t step = sequence.length - 1; step >= 0; --step) {
    places[step] = place;
    if (step > 0)
      place = pointers[step * stride + place];
  }
}

void fill_beam_crf(BeamKernels<Real>& k) {
  k.forward = beam_forward;
  k.backward = beam_backward;
  k.viterbi = beam_viterbi;
}

} // namespace
} // namespace petkit
