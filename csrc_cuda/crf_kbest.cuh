// The k best paths of each sequence of a linear-chain CRF: each tag keeps its k best prefixes in
// falling order. A thread merges the lists of all previous tags into that of its own.
#pragma once

#include "crf.cuh"

namespace petkit::cuda {

// Pointers take time x tags x k numbers of a sequence: no more rows than fit here at a time.
constexpr int64_t crf_kbest_bytes = 256 << 20;

// Up to `most` entries in falling order at every `stride`-th place. An entry of equal score stays
// behind those that came before it.
template <class Real> struct CrfList {
  Real* scores;
  int32_t* sources;
  int64_t stride, most;
  int64_t count = 0;

  __device__ Real score(int64_t rank) const { return scores[rank * stride]; }
  __device__ bool takes(Real score_) const {
    return score_ > -INFINITY && (count < most || score_ > score(most - 1));
  }
  __device__ void insert(Real score_, int64_t source) {
    int64_t rank = count < most ? count++ : most - 1;
    for (; rank > 0 && score_ > score(rank - 1); --rank) {
      scores[rank * stride] = scores[(rank - 1) * stride];
      sources[rank * stride] = sources[(rank - 1) * stride];
    }
    scores[rank * stride] = score_;
    sources[rank * stride] = int32_t(source);
  }
  // -infinity for what there is not.
  __device__ void end() const {
    for (int64_t rank = count; rank < most; ++rank)
      scores[rank * stride] = -INFINITY;
  }
};

// Lists of a sequence, of [rank][tag]; an entry's number is its place in them. `pointers` holds
// (time, k, tags), where each prefix comes from; the last list is that of whole paths, (k).
template <class Real> struct CrfLists {
  int64_t tags, k;
  Real *best, *next, *last_scores;
  int32_t *pointers, *last;

  // Merges the lists into another; `gain(tag)` is what an entry of a tag gains.
  template <class Gain> __device__ void merge(CrfList<Real>& into, const Gain& gain) const {
    for (int64_t tag = 0; tag < tags; ++tag) {
      const Real gained = gain(tag);
      // The lists fall: what follows an entry that is not taken is not taken either.
      for (int64_t rank = 0; rank < k && into.takes(best[rank * tags + tag] + gained); ++rank)
        into.insert(best[rank * tags + tag] + gained, rank * tags + tag);
    }
  }
};

// What the kernel writes, rows from the batch's first on, and where it works.
template <class Real> struct CrfBest {
  int64_t k;
  int64_t* paths;              // (batch, k, time)
  Real* scores;                // (batch, k)
  Real* lists = nullptr;       // (rows at a time, 2, k, tags)
  int32_t* pointers = nullptr; // (rows at a time, time, k, tags)
  Real* last_scores = nullptr; // (rows at a time, k)
  int32_t* last = nullptr;     // (rows at a time, k)

  __device__ CrfLists<Real> of_block(int64_t tags, int64_t time) const {
    const int64_t block = blockIdx.x, size = k * tags;
    Real* best = lists + block * 2 * size;
    return {tags,
            k,
            best,
            best + size,
            last_scores + block * k,
            pointers + block * time * size,
            last + block * k};
  }
};

// One position further: the lists of `next`, less the score of the best of all.
template <class T, class Real>
__device__ inline bool crf_extend_lists(const CrfModel<Real>& model, CrfLists<Real>& lists,
                                        const T* emissions, int64_t step, bool begun) {
  const int64_t tags = lists.tags, k = lists.k;
  bool spoiled = false;
  Real highest = -INFINITY;
  for (int64_t to = threadIdx.x; to < tags; to += blockDim.x) {
    const Real emission = crf_widen<Real>(emissions[to]);
    spoiled = spoiled || !(emission < INFINITY);
    CrfList<Real> own{lists.next + to, lists.pointers + step * k * tags + to, tags, k};
    if (begun)
      lists.merge(own, [&](int64_t from) { return model.transitions[from * tags + to]; });
    else if (own.takes(model.start[to]))
      own.insert(model.start[to], to);
    own.end();
    for (int64_t rank = 0; rank < own.count; ++rank)
      lists.next[rank * tags + to] += emission;
    highest = larger(highest, lists.next[to]);
  }
  const Real peak = crf_peak(block_max(highest));
  for (int64_t to = threadIdx.x; to < tags; to += blockDim.x)
    for (int64_t rank = 0; rank < k; ++rank)
      lists.next[rank * tags + to] -= peak;
  __syncthreads();
  Real* swap = lists.best;
  lists.best = lists.next, lists.next = swap;
  return spoiled;
}

// Follows the pointers of the path of a rank and returns its score, summed in float64.
template <class T, class Real>
__device__ inline double crf_trace_rank(const CrfModel<Real>& model, const CrfBatch<T>& batch,
                                        const CrfLists<Real>& lists, int64_t row, int64_t at,
                                        int64_t* path) {
  const int64_t tags = lists.tags;
  double score = double(model.end[at % tags]);
  int64_t next = -1;
  for (int64_t step = batch.time - 1; step >= 0; --step) {
    if (!batch.set(row, step))
      continue;
    if (next >= 0) {
      const int64_t to = at % tags;
      at = lists.pointers[next * lists.k * tags + at];
      score += double(model.transitions[at % tags * tags + to]);
    }
    path[step] = at % tags;
    score += double(crf_widen<Real>(batch.at(row, step)[at % tags]));
    next = step;
  }
  return score + double(model.start[at % tags]);
}

template <class T, class Real>
__global__ void __launch_bounds__(crf_threads)
    crf_kbest_kernel(CrfModel<Real> model, CrfBatch<T> batch, CrfBest<Real> result,
                     int64_t first_row) {
  PETKIT_SHARED(int64_t, found, 1);
  const int64_t row = first_row + blockIdx.x, tags = model.tags, k = result.k;
  CrfLists<Real> lists = result.of_block(tags, batch.time);
  bool begun = false, spoiled = false, spoiled_model = false;
  for (int64_t step = 0; step < batch.time; ++step) {
    if (!batch.set(row, step))
      continue;
    const bool bad = crf_extend_lists(model, lists, batch.at(row, step), step, begun);
    spoiled = spoiled || bad;
    begun = true;
  }
  for (int64_t tag = threadIdx.x; tag < tags; tag += blockDim.x)
    spoiled_model = spoiled_model || model.spoiled[tag];
  if (threadIdx.x == 0) {
    CrfList<Real> whole{lists.last_scores, lists.last, 1, k};
    if (begun)
      lists.merge(whole, [&](int64_t tag) { return model.end[tag]; });
    *found = whole.count;
  }
  const bool no_number = block_sum(int(spoiled)) > 0, no_model = block_sum(int(spoiled_model)) > 0;
  // Each thread finishes whole paths.
  for (int64_t rank = threadIdx.x; rank < k; rank += blockDim.x) {
    int64_t* path = result.paths + (row * k + rank) * batch.time;
    Real& score = result.scores[row * k + rank];
    for (int64_t step = 0; step < batch.time; ++step)
      path[step] = -1;
    // A row without positions has one path, the empty one.
    score = !begun && rank == 0 ? Real(0) : Real(-INFINITY);
    if (rank < *found && !(no_number && rank > 0))
      score = Real(crf_trace_rank(model, batch, lists, row, lists.last[rank], path));
    // Which paths are the best is not known beside what is no number: one says so.
    if (begun && ((no_number && rank == 0) || (no_model && (rank == 0 || rank < *found))))
      score = NAN;
  }
}

// How many rows have their pointers in memory at the same time.
inline int64_t crf_kbest_rows(int64_t batch, int64_t row_bytes, int64_t pointer_bytes) {
  return std::clamp<int64_t>(pointer_bytes / std::max<int64_t>(row_bytes, 1), 1, batch);
}

// k x tags must be below 2^31.
template <class T, class Real>
void crf_kbest(CrfModel<Real> model, const CrfBatch<T>& batch, int64_t k, int64_t* paths,
               Real* scores, Scratch& scratch, cudaStream_t stream,
               int64_t pointer_bytes = crf_kbest_bytes) {
  if (batch.batch == 0)
    return;
  crf_prepare(model, scratch, stream);
  const int64_t size = k * model.tags, row_bytes = batch.time * size * int64_t(sizeof(int32_t));
  const int64_t at_a_time = crf_kbest_rows(batch.batch, row_bytes, pointer_bytes);
  CrfBest<Real> result{k, paths, scores};
  result.lists = scratch.take<Real>(at_a_time * 2 * size, "lists");
  result.pointers = scratch.take<int32_t>(at_a_time * batch.time * size, "pointers");
  result.last_scores = scratch.take<Real>(at_a_time * k, "last_scores");
  result.last = scratch.take<int32_t>(at_a_time * k, "last");
  for (int64_t first = 0; first < batch.batch; first += at_a_time)
    PETKIT_LAUNCH((crf_kbest_kernel<T, Real>),
                  dim3(grid_x(std::min(at_a_time, batch.batch - first))),
                  dim3(crf_block_threads(model.tags)), 0, stream, model, batch, result, first);
}

} // namespace petkit::cuda
