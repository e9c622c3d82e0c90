// The recursions of linear-chain CRFs for one instruction set `Isa`, over rows of whole vectors.
//
// Sums over the previous tag are products of weights exp(alpha) with the matrix exp(transition -
// peak of its column), so a step costs no exponential per transition. A sum so small that some of
// what adds to it may have vanished is made again in logarithms, tag by tag: that is rare.
#pragma once

namespace petkit {
namespace {

using Real = Isa::Real;

constexpr int64_t lanes = Isa::width;
constexpr int tile_columns = lanes == 16 ? 4 : 2;
constexpr Real minus_infinity = -__builtin_inf();

// out[r] = w[r] matrix, for R rows of `depth` weights and C vectors of columns.
template <int R, int C>
inline void product_tile(const Real* w, int64_t w_row, int64_t w_step, const Real* matrix,
                         int64_t depth, int64_t stride, Real* out) {
  Isa::Float sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sum[r][c] = Isa::set(0);
  for (int64_t i = 0; i < depth; ++i) {
    Isa::Float row[C];
    for (int c = 0; c < C; ++c)
      row[c] = Isa::load(matrix + i * stride + c * lanes);
    for (int r = 0; r < R; ++r) {
      const Isa::Float weight = Isa::set(w[r * w_row + i * w_step]);
      for (int c = 0; c < C; ++c)
        sum[r][c] = Isa::fma(weight, row[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      Isa::store(out + r * stride + c * lanes, sum[r][c]);
}

template <int R>
void product_rows(const Real* w, int64_t w_row, int64_t w_step, const Real* matrix, int64_t depth,
                  int64_t stride, Real* out) {
  int64_t to = 0;
  for (; to + tile_columns * lanes <= stride; to += tile_columns * lanes)
    product_tile<R, tile_columns>(w, w_row, w_step, matrix + to, depth, stride, out + to);
  for (; to < stride; to += lanes)
    product_tile<R, 1>(w, w_row, w_step, matrix + to, depth, stride, out + to);
}

// out (rows, stride) = w (rows, depth) matrix (depth, stride), where w[r][i] lies at r w_row + i
// w_step.
void product(const Real* w, int64_t w_row, int64_t w_step, int64_t rows, const Real* matrix,
             int64_t depth, int64_t stride, Real* out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    product_rows<4>(w + r * w_row, w_row, w_step, matrix, depth, stride, out + r * stride);
  w += r * w_row, out += r * stride;
  switch (rows - r) {
  case 1:
    return product_rows<1>(w, w_row, w_step, matrix, depth, stride, out);
  case 2:
    return product_rows<2>(w, w_row, w_step, matrix, depth, stride, out);
  case 3:
    return product_rows<3>(w, w_row, w_step, matrix, depth, stride, out);
  }
}

template <class F> inline void each_vector(int64_t stride, const F& f) {
  for (int64_t i = 0; i < stride; i += lanes)
    f(i);
}

inline Real row_maximum(const Real* x, int64_t stride) {
  Isa::Float best = Isa::load(x);
  for (int64_t i = lanes; i < stride; i += lanes)
    best = Isa::max(Isa::load(x + i), best);
  return Isa::highest(best);
}

inline void read_emissions(const CrfSequence& sequence, int64_t step, int64_t tags, int64_t stride,
                           Real* out) {
  read_row(sequence.emissions + sequence.positions[step] * sequence.row_bytes, sequence.dtype, out,
           tags);
  for (int64_t i = tags; i < stride; ++i)
    out[i] = minus_infinity;
}

void exponentials(Real* values, int64_t count) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    Isa::store(values + i, exp_of(Isa::load(values + i)));
  for (; i < count; ++i)
    values[i] = __builtin_exp(values[i]);
}

// log of the sum over the previous tags, one exponential each.
Real exact_sum(const CrfModel<Real>& model, const Real* alpha, int64_t to) {
  Real peak = minus_infinity;
  for (int64_t from = 0; from < model.tags; ++from) {
    const Real x = alpha[from] + model.scores[from * model.stride + to];
    peak = x > peak ? x : peak;
  }
  if (peak == minus_infinity)
    return minus_infinity;
  double sum = 0;
  for (int64_t from = 0; from < model.tags; ++from)
    sum += __builtin_exp(double(alpha[from] + model.scores[from * model.stride + to] - peak));
  return peak + Real(__builtin_log(sum));
}

// alpha = log(sums) + peaks + emissions, where the sums come from `before`.
void finish_step(const CrfModel<Real>& model, const Real* before, const Real* sums,
                 const Real* emissions, Real* alpha) {
  bool small = false;
  const Isa::Float least = Isa::set(crf_least_sum);
  each_vector(model.stride, [&](int64_t i) {
    const Isa::Float sum = Isa::load(sums + i);
    small |= Isa::any(Isa::greater(least, sum));
    const Isa::Float into = Isa::add(log_of(sum), Isa::load(model.peaks + i));
    Isa::store(alpha + i, Isa::add(into, Isa::load(emissions + i)));
  });
  if (!small)
    return;
  for (int64_t to = 0; to < model.tags; ++to)
    if (sums[to] < crf_least_sum && model.peaks[to] > minus_infinity)
      alpha[to] = exact_sum(model, before, to) + emissions[to];
}

// Makes the largest alpha 0 and returns what it was; 0 where no tag is possible.
Real take_out_peak(Real* alpha, int64_t stride) {
  const Real peak = row_maximum(alpha, stride);
  if (peak == minus_infinity)
    return 0;
  const Isa::Float down = Isa::set(peak);
  each_vector(stride,
              [&](int64_t i) { Isa::store(alpha + i, Isa::sub(Isa::load(alpha + i), down)); });
  return peak;
}

void row_exponentials(const Real* x, Real* out, int64_t stride) {
  each_vector(stride, [&](int64_t i) { Isa::store(out + i, exp_of(Isa::load(x + i))); });
}

// Of numbers of which the largest is 0.
double log_sum(const Real* x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += __builtin_exp(double(x[i]));
  return __builtin_log(sum);
}

double log_sum_with_end(const CrfModel<Real>& model, const Real* alpha, Real* scratch) {
  each_vector(model.stride, [&](int64_t i) {
    Isa::store(scratch + i, Isa::add(Isa::load(alpha + i), Isa::load(model.end + i)));
  });
  const double peak = take_out_peak(scratch, model.stride);
  return peak + log_sum(scratch, model.tags);
}

void forward(const CrfModel<Real>& model, const CrfGroup& group, const CrfForward<Real>& result,
             double* log_z, Real* scratch) {
  const int64_t stride = model.stride, rows = crf_group * stride;
  Real *weights = scratch, *sums = weights + rows, *emissions = sums + rows;
  const auto slot = [&](int64_t step) { return result.keep ? step : step % 2; };
  for (int64_t step = 0; step < group.steps(); ++step) {
    const int active = group.active(step);
    Real* alphas = result.alphas + slot(step) * rows;
    double* offsets = result.offsets + slot(step) * crf_group;
    const Real* before = step == 0 ? nullptr : result.alphas + slot(step - 1) * rows;
    if (step > 0) {
      row_exponentials(before, weights, active * stride);
      product(weights, stride, 1, active, model.weights, model.tags, stride, sums);
    }
    for (int r = 0; r < active; ++r) {
      Real* alpha = alphas + r * stride;
      read_emissions(group.sequences[r], step, model.tags, stride, emissions);
      if (step == 0)
        each_vector(stride, [&](int64_t i) {
          Isa::store(alpha + i, Isa::add(Isa::load(emissions + i), Isa::load(model.start + i)));
        });
      else
        finish_step(model, before + r * stride, sums + r * stride, emissions, alpha);
      const double past = step == 0 ? 0 : result.offsets[slot(step - 1) * crf_group + r];
      offsets[r] = past + double(take_out_peak(alpha, stride));
      if (step + 1 == group.sequences[r].length)
        log_z[r] = offsets[r] + log_sum_with_end(model, alpha, emissions);
    }
  }
}

// Steps whose pair marginals are still to be summed: weights of the earlier tags, and of the later
// ones.
struct PairBlock {
  Real *earlier, *later;
  int64_t count = 0;
};

template <int R, int C>
inline void pairs_tile(const PairBlock& block, const CrfModel<Real>& model, int64_t from,
                       int64_t to, Real* pairs) {
  const int64_t stride = model.stride;
  Isa::Float sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      sum[r][c] = Isa::set(0);
  for (int64_t i = 0; i < block.count; ++i) {
    Isa::Float later[C];
    for (int c = 0; c < C; ++c)
      later[c] = Isa::load(block.later + i * stride + to + c * lanes);
    for (int r = 0; r < R; ++r) {
      const Isa::Float earlier = Isa::set(block.earlier[i * stride + from + r]);
      for (int c = 0; c < C; ++c)
        sum[r][c] = Isa::fma(earlier, later[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const int64_t place = (from + r) * stride + to + c * lanes;
      const Isa::Float weight = Isa::load(model.weights + place);
      Isa::store(pairs + place, Isa::fma(weight, sum[r][c], Isa::load(pairs + place)));
    }
}

template <int R>
void pairs_rows(const PairBlock& block, const CrfModel<Real>& model, int64_t from, Real* pairs) {
  int64_t to = 0;
  for (; to + tile_columns * lanes <= model.stride; to += tile_columns * lanes)
    pairs_tile<R, tile_columns>(block, model, from, to, pairs);
  for (; to < model.stride; to += lanes)
    pairs_tile<R, 1>(block, model, from, to, pairs);
}

void add_pairs(PairBlock& block, const CrfModel<Real>& model, Real* pairs) {
  int64_t from = 0;
  for (; from + 4 <= model.tags; from += 4)
    pairs_rows<4>(block, model, from, pairs);
  for (; from < model.tags; ++from)
    pairs_rows<1>(block, model, from, pairs);
  block.count = 0;
}

// What the backward recursion carries of one sequence: the log of the sum over suffixes after the
// current step, relative to the forward offset and log_z, so that exp(alpha + rest) is a marginal.
struct Rest {
  int64_t stride;
  Real* values;

  // Makes the marginals of the step in `out`. They sum to 1, which takes out what rounding adds up.
  void marginals(const Real* alpha, Real* out) {
    Isa::Float sum = Isa::set(0);
    each_vector(stride, [&](int64_t i) {
      const Isa::Float p = exp_of(Isa::add(Isa::load(alpha + i), Isa::load(values + i)));
      sum = Isa::add(sum, p);
      Isa::store(out + i, p);
    });
    const double total = Isa::sum(sum);
    const Isa::Float share = Isa::set(Real(1 / total)),
                     drift = Isa::set(Real(__builtin_log(total)));
    each_vector(stride, [&](int64_t i) {
      Isa::store(out + i, Isa::mul(Isa::load(out + i), share));
      Isa::store(values + i, Isa::sub(Isa::load(values + i), drift));
    });
  }

  // Weights of the step's tags as the later ones of a pair, in `out`: exp of peaks + emissions +
  // rest + down. Leaves their logarithms in `values`; true where one is too large.
  bool weigh(const Real* peaks, const Real* emissions, Real down, Real* out) {
    bool large = false;
    const Isa::Float limit = Isa::set(crf_largest_exponent), shift = Isa::set(down);
    each_vector(stride, [&](int64_t i) {
      Isa::Float x = Isa::add(Isa::load(values + i), Isa::load(emissions + i));
      x = Isa::add(Isa::add(x, Isa::load(peaks + i)), shift);
      const Isa::Mask above = Isa::greater(x, limit);
      large |= Isa::any(above);
      Isa::store(values + i, x);
      Isa::store(out + i, exp_of(Isa::select(above, Isa::set(minus_infinity), x)));
    });
    return large;
  }
};

// Tags whose weight would overflow, because all paths into them were as unlikely as they are
// likely now: their pairs in logarithms. `later` are the logarithms of the weights, and `rest` what
// the other tags have summed up to.
double exact_pairs(const CrfModel<Real>& model, const Real* alpha, const Real* later, double weight,
                   Real* pairs, Real* rest) {
  double score = 0;
  for (int64_t to = 0; to < model.tags; ++to) {
    if (!(later[to] > crf_largest_exponent))
      continue;
    for (int64_t from = 0; from < model.tags; ++from) {
      const Real transition = model.scores[from * model.stride + to];
      const Real onward = transition - model.peaks[to] + later[to];
      if (!(onward > minus_infinity))
        continue;
      const double probability = __builtin_exp(double(alpha[from] + onward));
      pairs[from * model.stride + to] += Real(weight * probability);
      score += probability * double(transition);
      const Real peak = onward > rest[from] ? onward : rest[from];
      rest[from] = peak + Real(__builtin_log(__builtin_exp(double(onward - peak)) +
                                             __builtin_exp(double(rest[from] - peak))));
    }
  }
  return score;
}

inline void add_scaled(const Real* x, double weight, Real* out, int64_t stride) {
  const Isa::Float scale = Isa::set(Real(weight));
  each_vector(stride, [&](int64_t i) {
    Isa::store(out + i, Isa::fma(scale, Isa::load(x + i), Isa::load(out + i)));
  });
}

inline void scale_row(Real* x, double weight, int64_t stride) {
  const Isa::Float scale = Isa::set(Real(weight));
  each_vector(stride, [&](int64_t i) { Isa::store(x + i, Isa::mul(scale, Isa::load(x + i))); });
}

inline double dot(const Real* a, const Real* b, int64_t stride) {
  Isa::Float sum = Isa::set(0);
  each_vector(stride, [&](int64_t i) { sum = Isa::fma(Isa::load(a + i), Isa::load(b + i), sum); });
  return double(Isa::sum(sum));
}

// The backward recursion of a group, step by step from the longest sequence's end.
class Backward {
public:
  Backward(const CrfModel<Real>& model, const CrfGroup& group, const CrfForward<Real>& forward,
           const double* log_z, const CrfTarget* targets, const CrfSums<Real>& sums, double* scores,
           Real* scratch)
      : model_(model), group_(group), forward_(forward), log_z_(log_z), targets_(targets),
        sums_(sums), scores_(scores), stride_(model.stride), rest_(scratch),
        sums_row_(rest_ + crf_group * stride_), emissions_(sums_row_ + crf_group * stride_),
        row_(emissions_ + stride_), logs_(row_ + stride_) {
    block_.earlier = logs_ + crf_group * stride_;
    block_.later = block_.earlier + crf_block * stride_;
  }

  void run() {
    for (int r = 0; r < group_.count; ++r)
      scores_[r] = 0;
    for (int64_t step = group_.steps() - 1; step >= 0; --step) {
      const int active = group_.active(step);
      for (int r = 0; r < active; ++r)
        write_marginals(step, r);
      if (step > 0)
        step_back(step, active);
    }
    add_pairs(block_, model_, sums_.pairs);
  }

private:
  const Real* alpha(int64_t step, int r) const {
    return forward_.alphas + (step * crf_group + r) * stride_;
  }
  double offset(int64_t step, int r) const { return forward_.offsets[step * crf_group + r]; }

  void write_marginals(int64_t step, int r) {
    const CrfSequence& sequence = group_.sequences[r];
    const CrfTarget& target = targets_[r];
    Rest rest{stride_, rest_ + r * stride_};
    const bool last = step + 1 == sequence.length;
    if (last) {
      const Isa::Float shift = Isa::set(Real(offset(step, r) - log_z_[r]));
      each_vector(stride_, [&](int64_t i) {
        Isa::store(rest.values + i, Isa::add(Isa::load(model_.end + i), shift));
      });
    }
    rest.marginals(alpha(step, r), row_);
    if (last)
      add_scaled(row_, target.weight, sums_.end, stride_);
    if (step == 0)
      add_scaled(row_, target.weight, sums_.start, stride_);
    scale_row(row_, target.weight, stride_);
    write_row(row_, target.dtype, target.rows + sequence.positions[step] * target.row_bytes,
              model_.tags);
  }

  void step_back(int64_t step, int active) {
    if (block_.count + active > crf_block)
      add_pairs(block_, model_, sums_.pairs);
    Real* earlier = block_.earlier + block_.count * stride_;
    Real* later = block_.later + block_.count * stride_;
    bool large[crf_group];
    for (int r = 0; r < active; ++r) {
      Rest rest{stride_, rest_ + r * stride_};
      read_emissions(group_.sequences[r], step, model_.tags, stride_, emissions_);
      large[r] = rest.weigh(model_.peaks, emissions_, Real(offset(step - 1, r) - offset(step, r)),
                            later + r * stride_);
    }
    row_exponentials(alpha(step - 1, 0), earlier, active * stride_);
    if (model_.scored_t) {
      product(later, stride_, 1, active, model_.scored_t, model_.tags, stride_, sums_row_);
      for (int r = 0; r < active; ++r)
        scores_[r] += dot(earlier + r * stride_, sums_row_ + r * stride_, stride_);
    }
    product(later, stride_, 1, active, model_.weights_t, model_.tags, stride_, sums_row_);
    for (int r = 0; r < active; ++r) {
      Real *values = rest_ + r * stride_, *logs = logs_ + r * stride_;
      std::memcpy(logs, values, size_t(stride_) * sizeof(Real));
      each_vector(stride_, [&](int64_t i) {
        Isa::store(values + i, log_of(Isa::load(sums_row_ + r * stride_ + i)));
      });
      if (large[r])
        scores_[r] +=
            exact_pairs(model_, alpha(step - 1, r), logs, targets_[r].weight, sums_.pairs, values);
      scale_row(later + r * stride_, targets_[r].weight, stride_);
    }
    block_.count += active;
  }

  const CrfModel<Real>& model_;
  const CrfGroup& group_;
  const CrfForward<Real>& forward_;
  const double* log_z_;
  const CrfTarget* targets_;
  const CrfSums<Real>& sums_;
  double* scores_;
  int64_t stride_;
  Real *rest_, *sums_row_, *emissions_, *row_, *logs_;
  PairBlock block_;
};

void backward(const CrfModel<Real>& model, const CrfGroup& group, const CrfForward<Real>& forward,
              const double* log_z, const CrfTarget* targets, const CrfSums<Real>& sums,
              double* scores, Real* scratch) {
  Backward(model, group, forward, log_z, targets, sums, scores, scratch).run();
}

// best = the largest of before + transition for C vectors of tags, and which tag it comes from, as
// numbers; of equal ones the first.
template <int C>
inline void best_sources(const CrfModel<Real>& model, const Real* before, int64_t to, Real* best,
                         Real* source) {
  Isa::Float value[C], from_tag[C];
  for (int c = 0; c < C; ++c)
    value[c] = Isa::set(minus_infinity), from_tag[c] = Isa::set(0);
  for (int64_t from = 0; from < model.tags; ++from) {
    const Isa::Float score = Isa::set(before[from]), number = Isa::set(Real(from));
    for (int c = 0; c < C; ++c) {
      const Isa::Float x =
          Isa::add(score, Isa::load(model.scores + from * model.stride + to + c * lanes));
      const Isa::Mask better = Isa::greater(x, value[c]);
      value[c] = Isa::select(better, x, value[c]);
      from_tag[c] = Isa::select(better, number, from_tag[c]);
    }
  }
  for (int c = 0; c < C; ++c) {
    Isa::store(best + to + c * lanes, value[c]);
    Isa::store(source + to + c * lanes, from_tag[c]);
  }
}

void best_step(const CrfModel<Real>& model, const Real* before, Real* best, Real* source) {
  int64_t to = 0;
  for (; to + tile_columns * lanes <= model.stride; to += tile_columns * lanes)
    best_sources<tile_columns>(model, before, to, best, source);
  for (; to < model.stride; to += lanes)
    best_sources<1>(model, before, to, best, source);
}

template <class Pointer>
inline void write_pointers(const Real* source, Pointer* pointers, int64_t stride) {
  for (int64_t i = 0; i < stride; ++i)
    pointers[i] = Pointer(int32_t(source[i]));
}

template <class Pointer>
double viterbi_with(const CrfModel<Real>& model, const CrfSequence& sequence, Pointer* pointers,
                    int64_t* path, Real* scratch) {
  const int64_t stride = model.stride, tags = model.tags;
  Real *before = scratch, *best = before + stride, *source = best + stride,
       *emissions = source + stride;
  bool spoiled = false;
  const Isa::Float none = Isa::set(minus_infinity);
  for (int64_t step = 0; step < sequence.length; ++step) {
    read_emissions(sequence, step, tags, stride, emissions);
    if (step == 0) {
      std::memcpy(best, model.start, size_t(stride) * sizeof(Real));
    } else {
      best_step(model, before, best, source);
      write_pointers(source, pointers + step * stride, stride);
    }
    each_vector(stride, [&](int64_t i) {
      const Isa::Float emission = Isa::load(emissions + i);
      // Only nan and +infinity make a nan of this.
      spoiled |= Isa::any(Isa::unordered(Isa::add(emission, none)));
      Isa::store(best + i, Isa::add(Isa::load(best + i), emission));
    });
    take_out_peak(best, stride);
    Real* swap = before;
    before = best, best = swap;
  }
  int64_t tag = 0;
  Real highest = minus_infinity;
  for (int64_t i = 0; i < tags; ++i)
    if (before[i] + model.end[i] > highest)
      highest = before[i] + model.end[i], tag = i;
  double score = double(model.end[tag]);
  for (int64_t step = sequence.length - 1; step >= 0; --step) {
    const char* row = sequence.emissions + sequence.positions[step] * sequence.row_bytes;
    path[step] = tag;
    score += double(read_one(row, sequence.dtype, tag));
    if (step > 0) {
      const int64_t from = pointers[step * stride + tag];
      score += double(model.scores[from * stride + tag]);
      tag = from;
    }
  }
  return spoiled ? __builtin_nan("") : score + double(model.start[tag]);
}

double viterbi(const CrfModel<Real>& model, const CrfSequence& sequence, void* pointers,
               int64_t* path, Real* scratch) {
  if (model.tags <= 256)
    return viterbi_with(model, sequence, static_cast<uint8_t*>(pointers), path, scratch);
  return viterbi_with(model, sequence, static_cast<uint16_t*>(pointers), path, scratch);
}

void fill_crf(CrfKernels<Real>& k) {
  k.exponentials = exponentials;
  k.forward = forward;
  k.backward = backward;
  k.viterbi = viterbi;
}

} // namespace
} // namespace petkit
