// The gradient of a beam CRF's log-partition and of the score of the targets.
//
// After the forward recursion a backward one leaves at each position the logs of the sums over
// suffixes. From both, a block a position makes the pair marginals of a transition and multiplies
// them by its factors: that gives a row of gradients for each candidate. Every entry of the
// vocabulary has a warp that adds its rows in the order of sequences and steps, so that every run
// gives the same bits.
#pragma once

#include "beam_crf_log_partition.cuh"

namespace petkit::cuda {

// Gradients of the rows' log_z and scores, and where those of the arguments go. `targets` and
// `of_score` are null without targets, `dynamic` is null for the identity.
template <class T, class Real> struct BeamGradient {
  const Real *of_log_z, *of_score; // (batch)
  const int64_t* targets;
  T* emissions;
  Real *left, *right, *dynamic;

  // Whatever a row holds that does not count, nan too, adds nothing.
  __device__ bool counts(int64_t row) const {
    return of_log_z[row] != 0 || (targets && of_score[row] != 0);
  }
};

// Gradients of the factors at the candidates on both sides of each transition of a segment, before
// they are added up; -1 among the entries where there is nothing to add. Behind the candidates is
// the target, if there are any.
template <class Real> struct BeamFactorRows {
  int64_t width;                 // beam, and one for the target
  int32_t *left_ids, *right_ids; // (batch, steps, width)
  Real *left, *right;            // (batch, steps, width, rank)
};

constexpr int beam_rest_rows = 2;

// log of the sum over the suffixes behind each candidate of a position, such that exp(alpha + rest)
// are marginals. `later` are the scores of what follows the transitions.
template <class Real>
__device__ inline void beam_step_back(const Real* scores, const Real* later, int64_t beam,
                                      Real drift, Real* rest) {
  for (int64_t from = warp_index(); from < beam; from += warp_count()) {
    const Real* at = scores + from * beam;
    Real highest = -INFINITY;
#pragma unroll 4
    for (int64_t to = lane_index(); to < beam; to += warp_threads)
      highest = larger(highest, at[to] + later[to]);
    const Real peak = crf_peak(warp_max(highest));
    Real sum = 0;
#pragma unroll 4
    for (int64_t to = lane_index(); to < beam; to += warp_threads)
      sum += exp_of(at[to] + later[to] - peak);
    sum = warp_sum(sum);
    if (lane_index() == 0)
      rest[from] = peak + log_of(sum) + drift;
  }
}

// The backward recursion over a segment, one block a sequence. `rests` is (batch, time, beam);
// `carried` (batch, beam) is what a segment hands to the one before it.
template <class T, class Real>
__global__ void __launch_bounds__(crf_threads)
    beam_rest_kernel(BeamBatch<T, Real> in, BeamSegment<Real> segment, BeamForward<Real> forward,
                     Real* rests, Real* carried, CrfRows<Real> rows) {
  PETKIT_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, beam = in.beam, time = in.rows.time;
  const int64_t end = segment.first + segment.steps;
  Real *rest = rows.of_block(shared), *later = rest + beam;
  const bool ends_here = in.previous(row, time) < end;
  for (int64_t i = threadIdx.x; i < beam; i += blockDim.x)
    rest[i] = ends_here ? Real(0) : carried[row * beam + i];
  __syncthreads();
  for (int64_t step = in.previous(row, end); step >= segment.first;) {
    const int64_t place = row * time + step, before = in.previous(row, step);
    const Real* alphas = forward.alphas + place * beam;
    // Divides the rounding of many steps out again.
    const Real total =
        Real(beam_block_log_sum<Real>(beam, [&](int64_t i) { return alphas[i] + rest[i]; }));
    for (int64_t i = threadIdx.x; i < beam; i += blockDim.x) {
      const Real own = rest[i] - total;
      rests[place * beam + i] = own;
      later[i] = in.emission(row, step, i) + own;
    }
    __syncthreads();
    if (before < 0)
      break;
    const Real drift = Real(forward.offsets[row * time + before] - forward.offsets[place]);
    beam_step_back(segment.scores + segment.place(row, step) * beam * beam, later, beam, drift,
                   rest);
    __syncthreads();
    step = before;
  }
  for (int64_t i = threadIdx.x; i < beam; i += blockDim.x)
    carried[row * beam + i] = rest[i];
}

// A transition into a position, as the block that makes its gradients sees it.
template <class T, class Real> struct BeamStep {
  BeamBatch<T, Real> in;
  BeamGradient<T, Real> gradient;
  int64_t row, step, before;
  Real *pairs, *turned, *left_rows, *right_rows;
  const Real* matrix;
  Real* of_matrix;

  __device__ Real left(int64_t i, int64_t k) const {
    return in.left[in.candidate(row, before, i) * in.rank + k];
  }
  __device__ Real right(int64_t j, int64_t k) const {
    return in.right[in.candidate(row, step, j) * in.rank + k];
  }
  // Whether the targets of both sides are in the vocabulary.
  __device__ bool has_targets() const {
    return gradient.targets && in.inside(target(before)) && in.inside(target(step));
  }
  __device__ int64_t target(int64_t at) const { return gradient.targets[row * in.rows.time + at]; }
  __device__ const Real* target_left() const { return in.left + target(before) * in.rank; }
  __device__ const Real* target_right() const { return in.right + target(step) * in.rank; }
};

// Turns scores into pair marginals times the gradient of log_z.
template <class T, class Real>
__device__ inline void beam_pairs(const BeamStep<T, Real>& at, const BeamForward<Real>& forward,
                                  const Real* rests) {
  const int64_t beam = at.in.beam, first = at.row * at.in.rows.time;
  const Real* alphas = forward.alphas + (first + at.before) * beam;
  const Real drift = Real(forward.offsets[first + at.before] - forward.offsets[first + at.step]);
  const Real weight = at.gradient.of_log_z[at.row];
  for (int64_t to = lane_index(); to < beam; to += warp_threads) {
    const Real onward =
        at.in.emission(at.row, at.step, to) + rests[(first + at.step) * beam + to] + drift;
    for (int64_t from = warp_index(); from < beam; from += warp_count()) {
      Real& pair = at.pairs[from * beam + to];
      pair = weight * exp_of(alphas[from] + pair + onward);
    }
  }
}

// The rows of gradients, and that of the matrix. Every thread of the block must call it.
template <class T, class Real>
__device__ inline void beam_factor_rows(const BeamStep<T, Real>& at, Real* shared) {
  const int64_t beam = at.in.beam, rank = at.in.rank;
  const auto left = [&](int64_t m, int64_t i) { return at.left(i, m); };
  const auto turned = [&](int64_t m, int64_t i) { return at.turned[i * rank + m]; };
  const auto to_from = [&](int64_t to, int64_t from) { return at.pairs[from * beam + to]; };
  const auto store = [&](int64_t to, int64_t m, Real x) { at.right_rows[to * rank + m] = x; };
  if (at.matrix)
    block_product<false, false>(beam, rank, beam, shared, to_from, turned, store);
  else
    block_product<false, false>(beam, rank, beam, shared, to_from, left, store);
  __syncthreads();
  // The gradient of left D lies where left D was.
  Real* of_turned = at.matrix ? at.turned : at.left_rows;
  block_product<true, false>(
      beam, rank, beam, shared,
      [&](int64_t from, int64_t to) { return at.pairs[from * beam + to]; },
      [&](int64_t m, int64_t to) { return at.right(to, m); },
      [&](int64_t from, int64_t m, Real x) { of_turned[from * rank + m] = x; });
  if (!at.matrix)
    return;
  __syncthreads();
  block_product<false, false>(
      rank, rank, beam, shared, left, turned,
      [&](int64_t k, int64_t m, Real x) { at.of_matrix[k * rank + m] = x; });
  block_product<true, true>(
      beam, rank, rank, shared, [&](int64_t i, int64_t m) { return of_turned[i * rank + m]; },
      [&](int64_t k, int64_t m) { return at.matrix[k * rank + m]; },
      [&](int64_t i, int64_t k, Real x) { at.left_rows[i * rank + k] = x; });
}

// Adds the gradient of the score of the targets, left[a] D right[b] for each step.
template <class T, class Real>
__device__ inline void beam_target_rows(const BeamStep<T, Real>& at) {
  const int64_t rank = at.in.rank;
  const Real *from = at.target_left(), *to = at.target_right(),
             weight = at.gradient.of_score[at.row];
  Real *of_from = at.left_rows + at.in.beam * rank, *of_to = at.right_rows + at.in.beam * rank;
  for (int64_t k = threadIdx.x; k < rank; k += blockDim.x) {
    Real seen = at.matrix ? Real(0) : to[k], brought = at.matrix ? Real(0) : from[k];
    for (int64_t m = 0; m < rank && at.matrix; ++m) {
      seen += at.matrix[k * rank + m] * to[m];
      brought += at.matrix[m * rank + k] * from[m];
      at.of_matrix[k * rank + m] += weight * from[k] * to[m];
    }
    of_from[k] = weight * seen, of_to[k] = weight * brought;
  }
}

template <class T, class Real>
__device__ inline void beam_row_ids(const BeamStep<T, Real>& at, bool any, int64_t width,
                                    int32_t* left_ids, int32_t* right_ids) {
  const int64_t beam = at.in.beam;
  for (int64_t i = threadIdx.x; i < beam; i += blockDim.x) {
    left_ids[i] = any ? int32_t(at.in.candidate(at.row, at.before, i)) : -1;
    right_ids[i] = any ? int32_t(at.in.candidate(at.row, at.step, i)) : -1;
  }
  if (threadIdx.x != 0 || width == beam)
    return;
  const bool targets = any && at.has_targets();
  left_ids[beam] = targets ? int32_t(at.target(at.before)) : -1;
  right_ids[beam] = targets ? int32_t(at.target(at.step)) : -1;
}

// Gradients of the transitions into the positions of a segment, a block each.
template <class T, class Real>
__global__ void __launch_bounds__(product_threads)
    beam_factors_kernel(BeamBatch<T, Real> in, BeamSegment<Real> segment, BeamForward<Real> forward,
                        const Real* rests, BeamGradient<T, Real> gradient,
                        BeamFactorRows<Real> rows) {
  PETKIT_SHARED(Real, shared, product_numbers);
  const int64_t row = blockIdx.x / segment.steps, step = segment.first + blockIdx.x % segment.steps;
  const bool counts = gradient.counts(row) && in.rows.set(row, step);
  const int64_t before = counts ? in.previous(row, step) : -1;
  const int64_t first_row = int64_t(blockIdx.x) * rows.width, matrix = in.rank * in.rank;
  Real* of_matrix = in.dynamic && step > 0
                        ? gradient.dynamic + (row * (in.rows.time - 1) + step - 1) * matrix
                        : nullptr;
  const BeamStep<T, Real> at{in,
                             gradient,
                             row,
                             step,
                             before,
                             segment.scores + int64_t(blockIdx.x) * in.beam * in.beam,
                             in.dynamic ? segment.turned + int64_t(blockIdx.x) * in.beam * in.rank
                                        : nullptr,
                             rows.left + first_row * in.rank,
                             rows.right + first_row * in.rank,
                             before >= 0 ? in.matrix(row, step) : nullptr,
                             of_matrix};
  beam_row_ids(at, before >= 0, rows.width, rows.left_ids + first_row, rows.right_ids + first_row);
  if (before < 0) {
    for (int64_t i = threadIdx.x; i < matrix && of_matrix; i += blockDim.x)
      of_matrix[i] = 0;
    return;
  }
  beam_pairs(at, forward, rests);
  __syncthreads();
  beam_factor_rows(at, shared);
  __syncthreads();
  if (at.has_targets())
    beam_target_rows(at);
}

constexpr int add_threads = 256;
constexpr int add_ids = 4;   // of a lane at a time
constexpr int add_ahead = 8; // rows that are read before the first is added
constexpr int64_t most_add_warps = 2048;

// Rows that a warp has still to add: each lane holds one, in the order of the lanes.
template <class Real> struct BeamPending {
  const Real* rows;
  Real* sums;
  int64_t rank;
  int count;
  int entry;
  int64_t place;

  // All lanes must call both functions.
  __device__ void push(int entry_, int64_t place_) {
    if (lane_index() == count)
      entry = entry_, place = place_;
    if (++count == warp_threads)
      flush();
  }
  // A number has the same lane each time, so that it needs no barrier.
  __device__ void flush() {
    for (int first = 0; first < count; first += add_ahead) {
      const Real* from[add_ahead];
      Real* to[add_ahead];
#pragma unroll
      for (int i = 0; i < add_ahead; ++i) {
        from[i] = rows + __shfl_sync(~0u, place, first + i) * rank;
        to[i] = sums + int64_t(__shfl_sync(~0u, entry, first + i)) * rank;
      }
      for (int64_t k = lane_index(); k < rank; k += warp_threads) {
        Real own[add_ahead];
#pragma unroll
        for (int i = 0; i < add_ahead; ++i)
          own[i] = first + i < count ? from[i][k] : Real(0);
#pragma unroll
        for (int i = 0; i < add_ahead; ++i)
          if (first + i < count)
            to[i][k] += own[i];
      }
    }
    count = 0;
  }
};

// sums[entry] += the rows with that entry. Entries are dealt to the warps of the grid, whose number
// is `mask` + 1, and each warp looks through all of them.
template <class Real>
__global__ void __launch_bounds__(add_threads)
    beam_add_kernel(const int32_t* __restrict__ ids, const Real* rows, int64_t count, int64_t rank,
                    int mask, Real* sums) {
  const int warp = int(blockIdx.x) * warp_count() + warp_index();
  BeamPending<Real> pending{rows, sums, rank, 0, 0, 0};
  for (int64_t base = 0; base < count; base += add_ids * warp_threads) {
    int own[add_ids];
#pragma unroll
    for (int part = 0; part < add_ids; ++part) {
      const int64_t i = base + part * warp_threads + lane_index();
      own[part] = i < count ? ids[i] : -1;
    }
#pragma unroll
    for (int part = 0; part < add_ids; ++part) {
      unsigned found = __ballot_sync(~0u, own[part] >= 0 && (own[part] & mask) == warp);
      for (; found; found &= found - 1) {
        const int lane = __ffs(int(found)) - 1;
        pending.push(__shfl_sync(~0u, own[part], lane), base + part * warp_threads + lane);
      }
    }
  }
  pending.flush();
}

template <class Real>
void beam_add(const int32_t* ids, const Real* rows, int64_t count, int64_t rank, int64_t vocab,
              Real* sums, cudaStream_t stream) {
  constexpr int64_t block_warps = add_threads / warp_threads;
  // With few rows there is little to share.
  const int64_t wanted = std::min({most_add_warps, vocab, ceil_div(count, 32)});
  int64_t warps = block_warps;
  while (warps < wanted)
    warps *= 2;
  PETKIT_LAUNCH((beam_add_kernel<Real>), dim3(unsigned(warps / block_warps)), dim3(add_threads), 0,
                stream, ids, rows, count, rank, int(warps) - 1, sums);
}

template <class Real> __global__ void beam_zero_kernel(Real* numbers, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    numbers[i] = 0;
}

template <class Real> void beam_zero(Real* numbers, int64_t count, cudaStream_t stream) {
  PETKIT_LAUNCH((beam_zero_kernel<Real>), dim3(stride_blocks(count, add_threads)),
                dim3(add_threads), 0, stream, numbers, count);
}

// A block writes the gradient of a position's emissions: 0 but at its candidates.
template <class T, class Real>
__global__ void __launch_bounds__(path_threads)
    beam_emissions_kernel(BeamBatch<T, Real> in, const Real* alphas, const Real* rests,
                          BeamGradient<T, Real> gradient, bool aligned) {
  const int64_t row = blockIdx.x / in.rows.time, step = blockIdx.x % in.rows.time;
  T* of_emissions = gradient.emissions + int64_t(blockIdx.x) * in.vocab;
  const float nothing[group] = {};
  for (int64_t i = int64_t(threadIdx.x) * group; i < in.vocab; i += blockDim.x * group)
    store_group(of_emissions + i, in.vocab - i, aligned, nothing);
  __syncthreads();
  if (!gradient.counts(row) || !in.rows.set(row, step))
    return;
  const int64_t target = gradient.targets ? gradient.targets[blockIdx.x] : -1;
  for (int64_t i = threadIdx.x; i < in.beam; i += blockDim.x) {
    const int64_t entry = in.candidate(row, step, i), place = int64_t(blockIdx.x) * in.beam + i;
    Real sum = gradient.of_log_z[row] * exp_of(alphas[place] + rests[place]);
    // The targets are among the candidates.
    if (entry == target)
      sum += gradient.of_score[row];
    of_emissions[entry] = crf_narrow<T>(sum);
  }
}

template <class T, class Real>
BeamFactorRows<Real> beam_row_room(const BeamBatch<T, Real>& in, int64_t width, int64_t steps,
                                   Scratch& scratch) {
  const int64_t count = in.rows.batch * steps * width;
  return {width, scratch.take<int32_t>(count, "left entries"),
          scratch.take<int32_t>(count, "right entries"),
          scratch.take<Real>(count * in.rank, "left rows"),
          scratch.take<Real>(count * in.rank, "right rows")};
}

// Goes through the segments from the last; the scores of that one are still there.
template <class T, class Real>
void beam_all_segments(const BeamBatch<T, Real>& in, BeamSegment<Real> segment, int64_t steps,
                       const BeamForward<Real>& forward, Real* rests,
                       const BeamGradient<T, Real>& gradient, const BeamFactorRows<Real>& rows,
                       Scratch& scratch, cudaStream_t stream) {
  const CrfRows<Real> shared(beam_rest_rows, in.beam, in.rows.batch, scratch);
  auto* carried = scratch.take<Real>(in.rows.batch * in.beam, "carried");
  const auto threads = unsigned(std::min<int64_t>(in.beam * warp_threads, crf_threads));
  for (bool last = true; segment.first >= 0; segment.first -= steps, last = false) {
    if (!last) {
      segment.steps = steps;
      beam_score(in, segment, stream);
    }
    PETKIT_LAUNCH((beam_rest_kernel<T, Real>), dim3(grid_x(in.rows.batch)), dim3(threads),
                  shared.shared_bytes(), stream, in, segment, forward, rests, carried, shared);
    const int64_t places = in.rows.batch * segment.steps;
    PETKIT_LAUNCH((beam_factors_kernel<T, Real>), dim3(grid_x(places)), dim3(product_threads), 0,
                  stream, in, segment, forward, rests, gradient, rows);
    const int64_t count = places * rows.width;
    beam_add(rows.left_ids, rows.left, count, in.rank, in.vocab, gradient.left, stream);
    beam_add(rows.right_ids, rows.right, count, in.rank, in.vocab, gradient.right, stream);
  }
}

// `in` has its candidates. `budget_bytes` is for tests.
template <class T, class Real>
void beam_crf_log_partition_backward(const BeamBatch<T, Real>& in,
                                     const BeamGradient<T, Real>& gradient, Scratch& scratch,
                                     cudaStream_t stream,
                                     int64_t budget_bytes = beam_budget_bytes) {
  beam_zero(gradient.left, in.vocab * in.rank, stream);
  beam_zero(gradient.right, in.vocab * in.rank, stream);
  if (in.places() == 0)
    return;
  const int64_t width = in.beam + (gradient.targets ? 1 : 0);
  const int64_t steps = beam_steps(in, 2 * width * (in.rank + 1), budget_bytes);
  BeamSegment<Real> segment = beam_segment(in, steps, scratch);
  const BeamForward<Real> forward = beam_forward_room(in, scratch);
  auto* rests = scratch.take<Real>(in.places() * in.beam, "rests");
  const BeamFactorRows<Real> rows = beam_row_room(in, width, steps, scratch);
  beam_chain<BeamLogSum<Real>>(in, segment, steps, forward, nullptr, scratch, stream);
  beam_all_segments(in, segment, steps, forward, rests, gradient, rows, scratch, stream);
  const bool aligned = groups_aligned(gradient.emissions, in.vocab, in.places());
  PETKIT_LAUNCH((beam_emissions_kernel<T, Real>), dim3(grid_x(in.places())), dim3(path_threads), 0,
                stream, in, forward.alphas, rests, gradient, aligned);
}

} // namespace petkit::cuda
