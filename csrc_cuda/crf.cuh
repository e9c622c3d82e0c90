// What the kernels of linear-chain CRFs share, and their forward recursion. A block takes one
// sequence, its threads take tags in turn, and masked positions are passed by where they lie.
//
// Sums over the previous tag are products of weights exp(alpha) with the matrix exp(transition -
// peak of its column), so a step costs no exponential per transition. A sum so small that some of
// what adds to it may have vanished is made again in logarithms, tag by tag: that is rare.
//
// `Real` is float, or double for float64 emissions.
#pragma once

#include "common/numeric.cuh"
#include "common/reduce.cuh"
#include "common/scratch.cuh"

namespace petkit::cuda {

constexpr int crf_threads = 512; // at most, of a block
constexpr int64_t crf_shared_bytes = 40 << 10;

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }

template <class Real, class T> __device__ inline Real crf_widen(T value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return to_float(value);
}
template <class T, class Real> __device__ inline T crf_narrow(Real value) {
  if constexpr (std::is_same_v<T, double>)
    return value;
  else
    return from_float<T>(value);
}

// A sum of less than this is not trusted; exp of no more than the largest exponent times a sum of
// at least this is no more than 1.
template <class Real> __device__ constexpr Real crf_least_sum() {
  return sizeof(Real) == sizeof(double) ? Real(1e-280) : Real(1e-28);
}
template <class Real> __device__ constexpr Real crf_largest_exponent() {
  return sizeof(Real) == sizeof(double) ? Real(600) : Real(60);
}

// The scores, and what `crf_prepare` makes of them where the pointer is not null. All matrices are
// (tags, tags); `_t` marks those of [to][from], the others are of [from][to].
template <class Real> struct CrfModel {
  int64_t tags;
  const Real *transitions, *start, *end;
  Real* peaks = nullptr;   // (tags), the largest score into each tag
  int* spoiled = nullptr;  // (tags), whether a score into it, its start or its end is nan or +inf
  Real* weights = nullptr; // exp(score - peak of its column); 1 where both are -infinity
  Real* weights_t = nullptr;
  Real* scored_t = nullptr; // weights_t times the scores, and 0 for forbidden transitions
  Real* transitions_t = nullptr;
};

// Emissions of a batch, their last dimension dense; the strides count elements.
template <class T> struct CrfBatch {
  const T* emissions;
  int64_t row_stride, step_stride;
  const bool* mask; // (batch, time)
  int64_t batch, time;

  __device__ const T* at(int64_t row, int64_t step) const {
    return emissions + row * row_stride + step * step_stride;
  }
  __device__ bool set(int64_t row, int64_t step) const { return mask[row * time + step]; }
};

// The log of the sum over prefixes that end in a tag is alpha + offset. Null where not wanted.
template <class Real> struct CrfForward {
  Real* alphas = nullptr;    // (batch, time, tags), the largest of each is 0; masked ones are unset
  double* offsets = nullptr; // (batch, time)
  double* exact_log_z = nullptr; // (batch)
  Real* log_z = nullptr;         // (batch)
};

// Rows of tags of each block: in shared memory where they fit, else in the scratch behind `spill`.
template <class Real> struct CrfRows {
  Real* spill;
  int64_t numbers; // of a block

  CrfRows(int64_t rows, int64_t tags, int64_t blocks, Scratch& scratch) : numbers(rows * tags) {
    const bool fits = numbers * int64_t(sizeof(Real)) <= crf_shared_bytes;
    spill = fits ? nullptr : scratch.take<Real>(blocks * numbers, "rows of tags");
  }
  size_t shared_bytes() const { return spill ? 0 : size_t(numbers) * sizeof(Real); }
  __device__ Real* of_block(float* shared) const {
    return spill ? spill + int64_t(blockIdx.x) * numbers : reinterpret_cast<Real*>(shared);
  }
};

inline int crf_block_threads(int64_t tags) {
  return int(std::min<int64_t>(ceil_div(tags, warp_threads) * warp_threads, crf_threads));
}

// What is taken out of a row to make its largest 0: nothing where no tag is possible.
template <class Real> __device__ inline Real crf_peak(Real highest) {
  return highest == -INFINITY ? Real(0) : highest;
}

template <class Real> __global__ void crf_columns_kernel(CrfModel<Real> model) {
  const int64_t to = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (to >= model.tags)
    return;
  Real peak = -INFINITY;
  bool spoiled = !(model.start[to] < INFINITY) || !(model.end[to] < INFINITY);
  for (int64_t from = 0; from < model.tags; ++from) {
    const Real score = model.transitions[from * model.tags + to];
    spoiled = spoiled || !(score < INFINITY);
    peak = larger(peak, score);
  }
  model.peaks[to] = peak;
  model.spoiled[to] = spoiled;
}

template <class Real> __global__ void crf_weights_kernel(CrfModel<Real> model) {
  const int64_t count = model.tags * model.tags, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t from = i / model.tags, to = i % model.tags, mirrored = to * model.tags + from;
    const Real score = model.transitions[i], peak = model.peaks[to];
    const Real weight = score == peak ? Real(1) : exp_of(score - peak);
    // A +infinity must show, although it is its column's peak.
    const Real shown = score == INFINITY ? Real(NAN) : weight;
    if (model.weights)
      model.weights[i] = shown;
    if (model.weights_t)
      model.weights_t[mirrored] = shown;
    if (model.scored_t)
      model.scored_t[mirrored] = score == -INFINITY ? Real(0) : shown * score;
    if (model.transitions_t)
      model.transitions_t[mirrored] = score;
  }
}

template <class Real>
void crf_prepare(CrfModel<Real>& model, Scratch& scratch, cudaStream_t stream) {
  model.peaks = scratch.take<Real>(model.tags, "peaks");
  model.spoiled = scratch.take<int>(model.tags, "spoiled");
  constexpr int threads = 64;
  PETKIT_LAUNCH((crf_columns_kernel<Real>), dim3(grid_x(ceil_div(model.tags, threads))),
                dim3(threads), 0, stream, model);
  if (!model.weights && !model.weights_t && !model.scored_t && !model.transitions_t)
    return;
  // A few entries for each thread: the matrix is small beside what is done with it.
  PETKIT_LAUNCH((crf_weights_kernel<Real>), dim3(stride_blocks(model.tags * model.tags, 512)),
                dim3(threads), 0, stream, model);
}

// The sum over i of row[i] matrix[i][column], in four chains so that they overlap.
template <class Real>
__device__ inline Real crf_product(const Real* row, const Real* __restrict__ matrix, int64_t tags,
                                   int64_t column) {
  Real sums[4] = {0, 0, 0, 0};
  const Real* at = matrix + column;
  int64_t i = 0;
  for (; i + 4 <= tags; i += 4) {
#pragma unroll
    for (int chain = 0; chain < 4; ++chain, at += tags)
      sums[chain] += row[i + chain] * __ldg(at);
  }
  for (; i < tags; ++i, at += tags)
    sums[0] += row[i] * __ldg(at);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// log of the sum over the previous tags, one exponential each.
template <class Real>
__device__ inline Real crf_exact_sum(const CrfModel<Real>& model, const Real* alpha, int64_t to) {
  Real peak = -INFINITY;
  for (int64_t from = 0; from < model.tags; ++from)
    peak = larger(peak, alpha[from] + model.transitions[from * model.tags + to]);
  if (peak == -INFINITY)
    return peak;
  Real sum = 0;
  for (int64_t from = 0; from < model.tags; ++from)
    sum += exp_of(alpha[from] + model.transitions[from * model.tags + to] - peak);
  return peak + log_of(sum);
}

// What a step brings into a tag, from the alphas before it and their exponentials.
template <class Real>
__device__ inline Real crf_log_sum(const CrfModel<Real>& model, const Real* alpha,
                                   const Real* weights, int64_t to) {
  const Real sum = crf_product(weights, model.weights, model.tags, to), peak = model.peaks[to];
  // A nan is not small and stays one.
  if (sum < crf_least_sum<Real>() && peak > -INFINITY)
    return crf_exact_sum(model, alpha, to);
  return log_of(sum) + peak;
}

// log of the sum over the last tags, relative to the last offset.
template <class Real>
__device__ inline double crf_log_sum_with_end(const CrfModel<Real>& model, const Real* alpha) {
  Real highest = -INFINITY;
  for (int64_t tag = threadIdx.x; tag < model.tags; tag += blockDim.x)
    highest = larger(highest, alpha[tag] + model.end[tag]);
  const Real peak = crf_peak(block_max(highest));
  double sum = 0;
  for (int64_t tag = threadIdx.x; tag < model.tags; tag += blockDim.x)
    sum += double(exp_of(alpha[tag] + model.end[tag] - peak));
  return double(peak) + log(block_sum(sum));
}

constexpr int crf_forward_rows = 3;

template <class T, class Real>
__global__ void __launch_bounds__(crf_threads)
    crf_forward_kernel(CrfModel<Real> model, CrfBatch<T> batch, CrfForward<Real> result,
                       CrfRows<Real> rows) {
  PETKIT_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, tags = model.tags;
  Real *alpha = rows.of_block(shared), *weights = alpha + tags, *next = weights + tags;
  double offset = 0;
  bool begun = false;
  for (int64_t step = 0; step < batch.time; ++step) {
    if (!batch.set(row, step))
      continue;
    const T* emissions = batch.at(row, step);
    Real highest = -INFINITY;
    for (int64_t to = threadIdx.x; to < tags; to += blockDim.x) {
      // Read before the long sum, so that it is there behind it.
      const Real emission = crf_widen<Real>(emissions[to]);
      next[to] = (begun ? crf_log_sum(model, alpha, weights, to) : model.start[to]) + emission;
      highest = larger(highest, next[to]);
    }
    const Real peak = crf_peak(block_max(highest));
    offset += double(peak);
    for (int64_t to = threadIdx.x; to < tags; to += blockDim.x) {
      alpha[to] = next[to] - peak;
      weights[to] = exp_of(alpha[to]);
      if (result.alphas)
        result.alphas[(row * batch.time + step) * tags + to] = alpha[to];
    }
    if (result.offsets && threadIdx.x == 0)
      result.offsets[row * batch.time + step] = offset;
    begun = true;
    __syncthreads();
  }
  // A row without positions has one path, the empty one.
  const double log_z = begun ? offset + crf_log_sum_with_end(model, alpha) : 0;
  if (threadIdx.x != 0)
    return;
  if (result.log_z)
    result.log_z[row] = Real(log_z);
  if (result.exact_log_z)
    result.exact_log_z[row] = log_z;
}

// `model` must have its weights.
template <class T, class Real>
void crf_forward(const CrfModel<Real>& model, const CrfBatch<T>& batch,
                 const CrfForward<Real>& result, Scratch& scratch, cudaStream_t stream) {
  const CrfRows<Real> rows(crf_forward_rows, model.tags, batch.batch, scratch);
  PETKIT_LAUNCH((crf_forward_kernel<T, Real>), dim3(grid_x(batch.batch)),
                dim3(crf_block_threads(model.tags)), rows.shared_bytes(), stream, model, batch,
                result, rows);
}

template <class T, class Real>
void crf_log_partition(CrfModel<Real> model, const CrfBatch<T>& batch, Real* log_z,
                       Scratch& scratch, cudaStream_t stream) {
  if (batch.batch == 0)
    return;
  model.weights = scratch.take<Real>(model.tags * model.tags, "weights");
  crf_prepare(model, scratch, stream);
  CrfForward<Real> result;
  result.log_z = log_z;
  crf_forward(model, batch, result, scratch, stream);
}

} // namespace petkit::cuda
