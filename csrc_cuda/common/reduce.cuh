// Sums and maxima over a warp and a block in a fixed order: the same input gives the same bits on
// every run.
#pragma once

#include <cmath>

#include "launch.cuh"

namespace petkit::cuda {

constexpr int most_warps = 32;

__device__ inline int lane_index() { return int(threadIdx.x) % warp_threads; }
__device__ inline int warp_index() { return int(threadIdx.x) / warp_threads; }
__device__ inline int warp_count() { return int(blockDim.x) / warp_threads; }

// The sum over the warp, in every lane: each lane adds the same pairs, so that all get the same
// bits.
template <class T> __device__ inline T warp_sum(T value) {
#pragma unroll
  for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2)
    value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

// The sum over a block of whole warps, in every thread. Every thread of the block must call it.
template <class T> __device__ inline T block_sum(T value) {
  PETKIT_SHARED(T, warps, most_warps);
  value = warp_sum(value);
  if (lane_index() == 0)
    warps[warp_index()] = value;
  __syncthreads();
  T total = 0;
  for (int w = 0; w < warp_count(); ++w)
    total += warps[w];
  // `warps` may be written again by the next call only after everybody has read it.
  __syncthreads();
  return total;
}

// The larger of two values; a nan is passed over.
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }

// The largest value of a warp, in every lane; a nan is passed over.
template <class T> __device__ inline T warp_max(T value) {
#pragma unroll
  for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2)
    value = larger(value, __shfl_xor_sync(~0u, value, lanes));
  return value;
}

// The same over a block of whole warps, in every thread. Every thread of the block must call it.
template <class T> __device__ inline T block_max(T value) {
  PETKIT_SHARED(T, warps, most_warps);
  value = warp_max(value);
  if (lane_index() == 0)
    warps[warp_index()] = value;
  __syncthreads();
  T highest = warps[0];
  for (int w = 1; w < warp_count(); ++w)
    highest = larger(highest, warps[w]);
  __syncthreads();
  return highest;
}

} // namespace petkit::cuda
