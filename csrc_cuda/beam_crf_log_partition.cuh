// The log of the sum over the paths through the candidates, and the score of the targets.
#pragma once

#include "beam_crf.cuh"

namespace petkit::cuda {

// peak + log(sum) of what comes from the candidates before.
template <class Real> struct BeamLogSum {
  static constexpr bool has_source = false;
  Real peak, sum;

  __device__ static BeamLogSum none() { return {Real(-INFINITY), Real(0)}; }
  __device__ static BeamLogSum of(const Real* before, const Real* scores, int64_t beam, int part,
                                  int parts) {
    BeamLogSum total = none();
#pragma unroll 4
    for (int64_t from = part; from < beam; from += parts)
      total.peak = larger(total.peak, before[from] + scores[from * beam]);
    const Real shift = crf_peak(total.peak);
#pragma unroll 4
    for (int64_t from = part; from < beam; from += parts)
      total.sum += exp_of(before[from] + scores[from * beam] - shift);
    return total;
  }
  // A sum of nothing has no peak; a nan among what is impossible stays.
  __device__ void add(const BeamLogSum& other) {
    const Real highest = larger(peak, other.peak), shift = crf_peak(highest);
    sum = sum * exp_of(peak - shift) + other.sum * exp_of(other.peak - shift);
    peak = highest;
  }
  __device__ Real value() const { return crf_peak(peak) + log_of(sum); }
};

// log of the sum of exp(value(i)) for i < count, in every thread of the block, which all must call
// it.
template <class Real, class Value>
__device__ inline double beam_block_log_sum(int64_t count, const Value& value) {
  Real highest = -INFINITY;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    highest = larger(highest, value(i));
  const Real shift = crf_peak(block_max(highest));
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    sum += double(exp_of(value(i) - shift));
  return double(shift) + log(block_sum(sum));
}

template <class T, class Real>
__global__ void __launch_bounds__(path_threads)
    beam_log_z_kernel(BeamBatch<T, Real> in, BeamForward<Real> forward, const bool* spoiled,
                      Real* log_z) {
  const int64_t row = blockIdx.x, last = in.previous(row, in.rows.time);
  const int64_t place = row * in.rows.time + last;
  // A row without positions has one path, the empty one.
  double total = 0;
  if (last >= 0)
    total = forward.offsets[place] + beam_block_log_sum<Real>(in.beam, [&](int64_t i) {
              return forward.alphas[place * in.beam + i];
            });
  const bool no_number = beam_spoiled(in, row, spoiled);
  if (threadIdx.x == 0)
    log_z[row] = no_number ? Real(NAN) : Real(total);
}

// `score` and `targets` are null where they are not wanted; `candidates` (batch, time, beam) are
// for the gradient.
template <class Real> struct BeamLogPartition {
  const int64_t* targets;
  Real *log_z, *score;
  int32_t* candidates;
};

// `budget_bytes` is for tests.
template <class T, class Real>
void beam_crf_log_partition(BeamBatch<T, Real> in, const BeamLogPartition<Real>& result,
                            Scratch& scratch, cudaStream_t stream,
                            int64_t budget_bytes = beam_budget_bytes) {
  if (in.rows.batch == 0)
    return;
  auto* spoiled = scratch.take<bool>(in.places(), "spoiled");
  in.candidates = result.candidates;
  const BeamForward<Real> forward = beam_forward_room(in, scratch);
  if (in.places() > 0) {
    beam_find(in, {result.candidates, spoiled, result.targets}, stream);
    const int64_t steps = beam_steps(in, 0, budget_bytes);
    BeamSegment<Real> segment = beam_segment(in, steps, scratch);
    beam_chain<BeamLogSum<Real>>(in, segment, steps, forward, nullptr, scratch, stream);
  }
  PETKIT_LAUNCH((beam_log_z_kernel<T, Real>), dim3(grid_x(in.rows.batch)), dim3(path_threads), 0,
                stream, in, forward, spoiled, result.log_z);
  if (result.targets)
    beam_path_scores(in, result.targets, spoiled, result.score, stream);
}

} // namespace petkit::cuda
