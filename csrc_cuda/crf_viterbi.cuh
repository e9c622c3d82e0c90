// The best path of each sequence of a linear-chain CRF.
#pragma once

#include "crf.cuh"

namespace petkit::cuda {

constexpr int crf_viterbi_rows = 2;

// The best previous tag; of equal ones the first.
template <class Real> struct CrfSource {
  Real score = -INFINITY;
  int64_t tag = 0;

  __device__ void add(Real candidate, int64_t from) {
    if (candidate > score)
      score = candidate, tag = from;
  }
};

template <class Real>
__device__ inline CrfSource<Real> crf_best_source(const CrfModel<Real>& model, const Real* before,
                                                  int64_t to) {
  CrfSource<Real> best;
  const Real* at = model.transitions + to;
#pragma unroll 4
  for (int64_t from = 0; from < model.tags; ++from, at += model.tags)
    best.add(before[from] + __ldg(at), from);
  return best;
}

// Follows the pointers from the last tag and returns the path's score, summed in float64.
template <class T, class Real, class Pointer>
__device__ inline double crf_trace(const CrfModel<Real>& model, const CrfBatch<T>& batch,
                                   const Pointer* pointers, int64_t last, int64_t* path) {
  const int64_t row = blockIdx.x, tags = model.tags;
  double score = double(model.end[last]);
  int64_t tag = last, next = -1;
  for (int64_t step = batch.time - 1; step >= 0; --step) {
    if (!batch.set(row, step))
      continue;
    // The pointers of a step lead from its tags to those of the step before.
    if (next >= 0) {
      const int64_t from = int64_t(pointers[next * tags + tag]);
      score += double(model.transitions[from * tags + tag]);
      tag = from;
    }
    path[step] = tag;
    score += double(crf_widen<Real>(batch.at(row, step)[tag]));
    next = step;
  }
  return score + double(model.start[tag]);
}

// `pointers` holds (batch, time, tags).
template <class T, class Real, class Pointer>
__global__ void __launch_bounds__(crf_threads)
    crf_viterbi_kernel(CrfModel<Real> model, CrfBatch<T> batch, Pointer* pointers, int64_t* paths,
                       Real* scores, CrfRows<Real> rows) {
  PETKIT_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, tags = model.tags;
  Real *before = rows.of_block(shared), *best = before + tags;
  pointers += row * batch.time * tags, paths += row * batch.time;
  bool begun = false, spoiled = false;
  for (int64_t step = 0; step < batch.time; ++step) {
    if (!batch.set(row, step)) {
      if (threadIdx.x == 0)
        paths[step] = -1;
      continue;
    }
    const T* emissions = batch.at(row, step);
    Real highest = -INFINITY;
    for (int64_t to = threadIdx.x; to < tags; to += blockDim.x) {
      const Real emission = crf_widen<Real>(emissions[to]);
      spoiled = spoiled || !(emission < INFINITY);
      CrfSource<Real> source{model.start[to], 0};
      if (begun)
        source = crf_best_source(model, before, to);
      pointers[step * tags + to] = Pointer(source.tag);
      best[to] = source.score + emission;
      highest = larger(highest, best[to]);
    }
    const Real peak = crf_peak(block_max(highest));
    for (int64_t to = threadIdx.x; to < tags; to += blockDim.x)
      before[to] = best[to] - peak;
    begun = true;
    __syncthreads();
  }
  for (int64_t tag = threadIdx.x; tag < tags; tag += blockDim.x)
    spoiled = spoiled || model.spoiled[tag];
  const bool no_number = block_sum(int(spoiled)) > 0;
  if (threadIdx.x != 0)
    return;
  if (!begun) {
    scores[row] = 0;
    return;
  }
  CrfSource<Real> last;
  for (int64_t tag = 0; tag < tags; ++tag)
    last.add(before[tag] + model.end[tag], tag);
  const double score = crf_trace(model, batch, pointers, last.tag, paths);
  // The path may pass by what is no number; its score must not hide it.
  scores[row] = no_number ? Real(NAN) : Real(score);
}

template <class Pointer, class T, class Real>
void crf_viterbi_with(const CrfModel<Real>& model, const CrfBatch<T>& batch, int64_t* paths,
                      Real* scores, Scratch& scratch, cudaStream_t stream) {
  const CrfRows<Real> rows(crf_viterbi_rows, model.tags, batch.batch, scratch);
  auto* pointers = scratch.take<Pointer>(batch.batch * batch.time * model.tags, "pointers");
  PETKIT_LAUNCH((crf_viterbi_kernel<T, Real, Pointer>), dim3(grid_x(batch.batch)),
                dim3(crf_block_threads(model.tags)), rows.shared_bytes(), stream, model, batch,
                pointers, paths, scores, rows);
}

template <class T, class Real>
void crf_viterbi(CrfModel<Real> model, const CrfBatch<T>& batch, int64_t* paths, Real* scores,
                 Scratch& scratch, cudaStream_t stream) {
  if (batch.batch == 0)
    return;
  crf_prepare(model, scratch, stream);
  if (model.tags <= 256)
    crf_viterbi_with<uint8_t>(model, batch, paths, scores, scratch, stream);
  else
    crf_viterbi_with<uint16_t>(model, batch, paths, scores, scratch, stream);
}

} // namespace petkit::cuda
