// Mean and unbiased standard deviation of a whole matrix in two deterministic stages: every block
// reduces a fixed share to (count, mean, sum of squared deviations), and whoever needs the result
// merges those few.
#pragma once

#include "common/numeric.cuh"
#include "common/reduce.cuh"

namespace petkit::cuda {

struct Moments {
  double count, mean, squares;
};

struct Statistics {
  float shift, scale;
};

constexpr int statistics_threads = 256;
// Enough to fill an H100 with 128-bit loads in flight, few enough that each consuming block merges
// them itself, which saves the launch of a merging kernel: adapters are small, and launches are
// most of their time.
constexpr int64_t most_parts = 512;

inline int64_t statistics_parts(int64_t count) {
  return std::clamp<int64_t>(ceil_div(count, statistics_threads * group * 2), 1, most_parts);
}

// Deviations are merged, never obtained as a difference of large sums, so a mean far from zero
// costs no digits.
__device__ inline Moments merge(Moments a, Moments b) {
  const double count = a.count + b.count;
  if (count == 0)
    return a;
  const double apart = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

__device__ inline Moments warp_merge(Moments m) {
#pragma unroll
  for (int lanes = warp_threads / 2; lanes > 0; lanes /= 2) {
    const Moments other{__shfl_down_sync(~0u, m.count, lanes), __shfl_down_sync(~0u, m.mean, lanes),
                        __shfl_down_sync(~0u, m.squares, lanes)};
    m = merge(m, other);
  }
  return m;
}

// The moments of the whole block, valid in thread 0.
__device__ inline Moments block_merge(Moments m) {
  PETKIT_SHARED(Moments, warps, most_warps);
  m = warp_merge(m);
  if (lane_index() == 0)
    warps[warp_index()] = m;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < warp_count(); ++w)
      m = merge(m, warps[w]);
  return m;
}

// Sums of deviations from the thread's first element, in double.
struct Running {
  double origin = 0, sum = 0, squares = 0;
  int64_t count = 0;

  __device__ void add(const float (&values)[group], int64_t valid) {
    if (count == 0)
      origin = double(values[0]);
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (i < valid) {
        const double deviation = double(values[i]) - origin;
        sum += deviation;
        squares += deviation * deviation;
      }
    count += valid < group ? valid : group;
  }

  __device__ Moments moments() const {
    if (count == 0)
      return {0, 0, 0};
    const double mean = sum / double(count);
    return {double(count), origin + mean, squares - sum * mean};
  }
};

template <class T>
__global__ void __launch_bounds__(statistics_threads)
    moments_kernel(const T* __restrict__ weight, Moments* __restrict__ parts, int64_t count,
                   bool aligned) {
  Running running;
  const int64_t groups = (count + group - 1) / group, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    float values[group];
    const int64_t valid = count - g * group;
    load_group(weight + g * group, valid, aligned, values);
    running.add(values, valid);
  }
  const Moments total = block_merge(running.moments());
  if (threadIdx.x == 0)
    parts[blockIdx.x] = total;
}

// Merges the parts in the same order in every block, so that all blocks get the same bits.
__device__ inline Statistics merge_parts(const Moments* __restrict__ parts, int64_t count) {
  PETKIT_SHARED(Statistics, result, 1);
  Moments own{0, 0, 0};
  for (int64_t p = threadIdx.x; p < count; p += blockDim.x)
    own = merge(own, parts[p]);
  const Moments total = block_merge(own);
  if (threadIdx.x == 0)
    result[0] = {float(total.mean), float(sqrt(total.squares / (total.count - 1)))};
  __syncthreads();
  return result[0];
}

template <class T>
void compute_moments(const T* weight, Moments* parts, int64_t count, cudaStream_t stream) {
  PETKIT_LAUNCH((moments_kernel<T>), dim3(unsigned(statistics_parts(count))),
                dim3(statistics_threads), 0, stream, weight, parts, count,
                groups_aligned(weight, count, 1));
}

} // namespace petkit::cuda
