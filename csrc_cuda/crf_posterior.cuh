// Marginals of linear-chain CRFs: forward and backward recursion, one block a sequence.
#pragma once

#include "crf.cuh"

namespace petkit::cuda {

// What is wanted of the backward recursion; null where nothing is.
template <class Out, class Real> struct CrfPosterior {
  Out* marginals; // (batch, time, tags), times the weight of the row; 0 at masked positions
  const Real* row_weights = nullptr; // (batch), 1 without; rows of 0 may hold anything
  // (batch, time, tags): logarithms of the weights with which the tags of the next position are
  // the later ones of a pair; -infinity at the last position, unset at masked ones and in rows of
  // weight 0.
  Real* later = nullptr;
  Real *first = nullptr, *last = nullptr; // (batch, tags), weighted marginals of the ends
  Real* scores = nullptr; // (batch), expected score of the transitions; needs the model's scored_t
};

// What the recursion carries of a sequence. `rest` is the log of the sum over suffixes after the
// current position, relative to its forward offset and log_z, so that exp(alpha + rest) is a
// marginal. `logs` and `weights` are the tags of the position before as later ones of a pair.
template <class Real> struct CrfBackward {
  Real *rest, *logs, *weights;
};
constexpr int crf_backward_rows = 3;

// Where weights would overflow, because all paths into a tag were as unlikely as they are likely
// now: the new rest in logarithms. Adds to the expected score of the transitions.
template <class Real>
__device__ inline Real crf_exact_rest(const CrfModel<Real>& model, const Real* logs, int64_t from,
                                      Real alpha, double& score) {
  const Real* transitions = model.transitions + from * model.tags;
  const auto onward = [&](int64_t to) {
    // -infinity less a peak of -infinity is none.
    return transitions[to] == -INFINITY ? Real(-INFINITY)
                                        : transitions[to] - model.peaks[to] + logs[to];
  };
  Real peak = -INFINITY;
  for (int64_t to = 0; to < model.tags; ++to)
    peak = larger(peak, onward(to));
  if (peak == -INFINITY)
    return peak;
  Real sum = 0;
  for (int64_t to = 0; to < model.tags; ++to) {
    const Real log_pair = onward(to);
    sum += exp_of(log_pair - peak);
    if (log_pair > -INFINITY)
      score += double(exp_of(alpha + log_pair)) * double(transitions[to]);
  }
  return peak + log_of(sum);
}

// From position `after` back to `step`. Returns this thread's share of the expected score of the
// transition between them.
template <class T, class Out, class Real>
__device__ inline double
crf_step_back(const CrfModel<Real>& model, const CrfBatch<T>& batch,
              const CrfForward<Real>& forward, const CrfPosterior<Out, Real>& result,
              const CrfBackward<Real>& carried, int64_t step, int64_t after) {
  const int64_t row = blockIdx.x, tags = model.tags, place = row * batch.time + step;
  const T* emissions = batch.at(row, after);
  const Real down = Real(forward.offsets[place] - forward.offsets[row * batch.time + after]);
  const Real limit = crf_largest_exponent<Real>();
  bool large = false;
  for (int64_t to = threadIdx.x; to < tags; to += blockDim.x) {
    const Real emission = crf_widen<Real>(emissions[to]);
    const Real x = carried.rest[to] + emission + model.peaks[to] + down;
    large = large || x > limit;
    carried.logs[to] = x;
    carried.weights[to] = x > limit ? Real(0) : exp_of(x);
    if (result.later)
      result.later[place * tags + to] = x;
  }
  // The barriers of the sum complete the rows for all threads.
  const bool exact = block_sum(int(large)) > 0;
  double score = 0;
  for (int64_t from = threadIdx.x; from < tags; from += blockDim.x) {
    const Real alpha = forward.alphas[place * tags + from];
    if (exact) {
      carried.rest[from] = crf_exact_rest(model, carried.logs, from, alpha, score);
      continue;
    }
    carried.rest[from] = log_of(crf_product(carried.weights, model.weights_t, tags, from));
    if (model.scored_t)
      score += double(exp_of(alpha) * crf_product(carried.weights, model.scored_t, tags, from));
  }
  return score;
}

template <class Real, class Out>
__device__ inline void crf_begin_rest(const CrfModel<Real>& model, const CrfForward<Real>& forward,
                                      const CrfPosterior<Out, Real>& result, Real* rest,
                                      int64_t place) {
  const Real shift = Real(forward.offsets[place] - forward.exact_log_z[blockIdx.x]);
  for (int64_t tag = threadIdx.x; tag < model.tags; tag += blockDim.x) {
    rest[tag] = model.end[tag] + shift;
    if (result.later)
      result.later[place * model.tags + tag] = -INFINITY;
  }
}

// The marginals sum to 1, which takes out what rounding adds up. The barriers of the sum also let
// the carried rows be written again.
template <class Real, class Out>
__device__ inline void crf_write_marginals(const CrfModel<Real>& model,
                                           const CrfForward<Real>& forward,
                                           const CrfPosterior<Out, Real>& result, Real* rest,
                                           int64_t place, Real* first, Real* last) {
  const int64_t tags = model.tags;
  const Real* alphas = forward.alphas + place * tags;
  Real sum = 0;
  for (int64_t tag = threadIdx.x; tag < tags; tag += blockDim.x)
    sum += exp_of(alphas[tag] + rest[tag]);
  const Real total = block_sum(sum), share = 1 / total, drift = log_of(total);
  const Real weight = result.row_weights ? result.row_weights[blockIdx.x] : Real(1);
  for (int64_t tag = threadIdx.x; tag < tags; tag += blockDim.x) {
    const Real weighted = exp_of(alphas[tag] + rest[tag]) * share * weight;
    rest[tag] -= drift;
    result.marginals[place * tags + tag] = crf_narrow<Out>(weighted);
    if (first)
      first[tag] = weighted;
    if (last)
      last[tag] = weighted;
  }
}

template <class T> __device__ inline void crf_fill_zero(T* row, int64_t tags) {
  for (int64_t tag = threadIdx.x; row && tag < tags; tag += blockDim.x)
    row[tag] = crf_narrow<T>(std::conditional_t<std::is_same_v<T, double>, double, float>(0));
}

template <class T, class Out, class Real>
__global__ void __launch_bounds__(crf_threads)
    crf_backward_kernel(CrfModel<Real> model, CrfBatch<T> batch, CrfForward<Real> forward,
                        CrfPosterior<Out, Real> result, CrfRows<Real> rows) {
  PETKIT_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, tags = model.tags;
  Real* room = rows.of_block(shared);
  const CrfBackward<Real> carried{room, room + tags, room + 2 * tags};
  Real* of_first = result.first ? result.first + row * tags : nullptr;
  Real* of_last = result.last ? result.last + row * tags : nullptr;
  int64_t first = 0, after = -1;
  while (first < batch.time && !batch.set(row, first))
    ++first;
  double score = 0;
  // Whatever a row of weight 0 holds, nan too, adds nothing.
  const bool counts = !result.row_weights || result.row_weights[row] != 0;
  for (int64_t step = batch.time - 1; step >= 0; --step) {
    const int64_t place = row * batch.time + step;
    if (!counts || !batch.set(row, step)) {
      crf_fill_zero(result.marginals + place * tags, tags);
      continue;
    }
    if (after < 0)
      crf_begin_rest(model, forward, result, carried.rest, place);
    else
      score += crf_step_back(model, batch, forward, result, carried, step, after);
    crf_write_marginals(model, forward, result, carried.rest, place,
                        step == first ? of_first : nullptr, after < 0 ? of_last : nullptr);
    after = step;
  }
  if (after < 0) {
    crf_fill_zero(of_first, tags);
    crf_fill_zero(of_last, tags);
  }
  const double expected = block_sum(score);
  if (result.scores && threadIdx.x == 0)
    result.scores[row] = Real(expected);
}

// Prepares the model and fills `forward`, its log_z where wanted, then the posterior.
template <class T, class Out, class Real>
void crf_posterior(CrfModel<Real>& model, const CrfBatch<T>& batch, CrfForward<Real>& forward,
                   const CrfPosterior<Out, Real>& result, Scratch& scratch, cudaStream_t stream) {
  const int64_t places = batch.batch * batch.time, pairs = model.tags * model.tags;
  model.weights = scratch.take<Real>(pairs, "weights");
  model.weights_t = scratch.take<Real>(pairs, "weights_t");
  if (result.scores)
    model.scored_t = scratch.take<Real>(pairs, "scored_t");
  crf_prepare(model, scratch, stream);
  forward.alphas = scratch.take<Real>(places * model.tags, "alphas");
  forward.offsets = scratch.take<double>(places, "offsets");
  forward.exact_log_z = scratch.take<double>(batch.batch, "exact_log_z");
  crf_forward(model, batch, forward, scratch, stream);
  const CrfRows<Real> rows(crf_backward_rows, model.tags, batch.batch, scratch);
  PETKIT_LAUNCH((crf_backward_kernel<T, Out, Real>), dim3(grid_x(batch.batch)),
                dim3(crf_block_threads(model.tags)), rows.shared_bytes(), stream, model, batch,
                forward, result, rows);
}

// Marginals, the expected score of the transitions of each row, and log_z.
template <class T, class Real>
void crf_marginals(CrfModel<Real> model, const CrfBatch<T>& batch, Real* marginals, Real* scores,
                   Real* log_z, Scratch& scratch, cudaStream_t stream) {
  if (batch.batch == 0)
    return;
  CrfPosterior<Real, Real> result{marginals};
  result.scores = scores;
  CrfForward<Real> forward;
  forward.log_z = log_z;
  crf_posterior(model, batch, forward, result, scratch, stream);
}

} // namespace petkit::cuda
