// The best path of each sequence through its candidates.
#pragma once

#include "beam_crf.cuh"

namespace petkit::cuda {

// The best candidate before; of equal ones the first.
template <class Real> struct BeamBest {
  static constexpr bool has_source = true;
  Real score;
  int source;

  __device__ static BeamBest none() { return {Real(-INFINITY), 0}; }
  __device__ static BeamBest of(const Real* before, const Real* scores, int64_t beam, int part,
                                int parts) {
    BeamBest best = none();
#pragma unroll 4
    for (int64_t from = part; from < beam; from += parts) {
      const Real score = before[from] + scores[from * beam];
      if (score > best.score)
        best = {score, int(from)};
    }
    return best;
  }
  __device__ void add(const BeamBest& other) {
    if (other.score > score || (other.score == score && other.source < source))
      *this = other;
  }
  __device__ Real value() const { return score; }
};

constexpr int trace_threads = 32;

// Follows the pointers from the best of the last candidates.
template <class T, class Real>
__global__ void __launch_bounds__(trace_threads)
    beam_trace_kernel(BeamBatch<T, Real> in, const Real* alphas, const uint16_t* pointers,
                      int64_t* paths) {
  const int64_t row = blockIdx.x, time = in.rows.time;
  for (int64_t step = threadIdx.x; step < time; step += trace_threads)
    if (!in.rows.set(row, step))
      paths[row * time + step] = -1;
  int64_t step = in.previous(row, time);
  if (threadIdx.x != 0 || step < 0)
    return;
  const Real* last = alphas + (row * time + step) * in.beam;
  int64_t best = 0;
#pragma unroll 4
  for (int64_t i = 1; i < in.beam; ++i)
    if (last[i] > last[best])
      best = i;
  for (; step >= 0; step = in.previous(row, step)) {
    paths[row * time + step] = in.candidate(row, step, best);
    if (in.previous(row, step) >= 0)
      best = pointers[(row * time + step) * in.beam + best];
  }
}

// `budget_bytes` is for tests.
template <class T, class Real>
void beam_crf_viterbi(BeamBatch<T, Real> in, int64_t* paths, Real* scores, Scratch& scratch,
                      cudaStream_t stream, int64_t budget_bytes = beam_budget_bytes) {
  if (in.rows.batch == 0)
    return;
  const int64_t places = in.places();
  auto* candidates = scratch.take<int32_t>(places * in.beam, "candidates");
  auto* spoiled = scratch.take<bool>(places, "spoiled");
  in.candidates = candidates;
  if (places > 0) {
    beam_find(in, {candidates, spoiled, nullptr}, stream);
    const int64_t steps = beam_steps(in, 0, budget_bytes);
    BeamSegment<Real> segment = beam_segment(in, steps, scratch);
    const BeamForward<Real> forward = beam_forward_room(in, scratch);
    auto* pointers = scratch.take<uint16_t>(places * in.beam, "pointers");
    beam_chain<BeamBest<Real>>(in, segment, steps, forward, pointers, scratch, stream);
    PETKIT_LAUNCH((beam_trace_kernel<T, Real>), dim3(grid_x(in.rows.batch)), dim3(trace_threads), 0,
                  stream, in, forward.alphas, pointers, paths);
  }
  beam_path_scores(in, paths, spoiled, scores, stream);
}

} // namespace petkit::cuda
