// The quantiser inside training: forward replaces each weight by its level's value; backward is the
// exact straight-through gradient (the identity one needs no kernel). Both read the weight twice
// and write once.
#pragma once

#include "common/tables.cuh"
#include "statistics.cuh"

namespace petkit::cuda {

template <class T, int BITS>
__global__ void __launch_bounds__(statistics_threads)
    fake_quantize_kernel(const T* __restrict__ weight, const Moments* __restrict__ parts,
                         int64_t part_count, const float* __restrict__ codebook,
                         T* __restrict__ quantized, float* __restrict__ shift,
                         float* __restrict__ scale, int64_t count, bool aligned) {
  PETKIT_SHARED(float, cuts, 1 << BITS);
  PETKIT_SHARED(float, values, 1 << BITS);
  const Statistics statistics = merge_parts(parts, part_count);
  fill_cuts<BITS>(cuts, codebook, statistics.shift, statistics.scale);
  fill_values<BITS>(values, codebook, statistics.shift, statistics.scale);
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *shift = statistics.shift;
    *scale = statistics.scale;
  }
  const int64_t groups = (count + group - 1) / group, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t valid = count - g * group;
    float elements[group];
    load_group(weight + g * group, valid, aligned, elements);
#pragma unroll
    for (int i = 0; i < group; ++i)
      elements[i] = values[nearest_code<BITS>(elements[i], cuts)];
    store_group(quantized + g * group, valid, aligned, elements);
  }
}

// The two sums over the matrix that the gradient of each weight needs, in double.
struct GradientSums {
  double gradient, inner;
};

// With ratio = scale / (scale + eps): how far a weight's level lies from where its own slope would
// put it.
struct Slopes {
  float ratio, deviation_factor;

  __device__ explicit Slopes(float scale) {
    const double spread = double(scale) + epsilon, exact_ratio = double(scale) / spread;
    ratio = float(exact_ratio);
    deviation_factor = float(exact_ratio / spread);
  }
};

template <class T, int BITS>
__global__ void __launch_bounds__(statistics_threads)
    gradient_sums_kernel(const T* __restrict__ grad, const T* __restrict__ weight,
                         const float* __restrict__ shift, const float* __restrict__ scale,
                         const float* __restrict__ codebook, GradientSums* __restrict__ parts,
                         int64_t count, bool aligned) {
  PETKIT_SHARED(float, cuts, 1 << BITS);
  PETKIT_SHARED(float, rounded, 1 << BITS);
  fill_cuts<BITS>(cuts, codebook, *shift, *scale);
  for (int c = int(threadIdx.x); c < levels(BITS); c += int(blockDim.x))
    rounded[c] = codebook[c];
  __syncthreads();
  const Slopes slopes(*scale);
  const float mean = *shift;
  GradientSums sums{0, 0};
  const int64_t groups = (count + group - 1) / group, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t valid = count - g * group;
    float gradients[group], weights[group];
    load_group(grad + g * group, valid, aligned, gradients);
    load_group(weight + g * group, valid, aligned, weights);
#pragma unroll
    for (int i = 0; i < group; ++i) {
      // Elements behind the end have a zero gradient and add nothing.
      const float level = rounded[nearest_code<BITS>(weights[i], cuts)];
      sums.gradient += double(gradients[i]);
      sums.inner += double(gradients[i] * (level - (weights[i] - mean) * slopes.deviation_factor));
    }
  }
  sums = {block_sum(sums.gradient), block_sum(sums.inner)};
  if (threadIdx.x == 0)
    parts[blockIdx.x] = sums;
}

// The sums over all parts, the same bits in every block.
__device__ inline GradientSums merge_parts(const GradientSums* __restrict__ parts, int64_t count) {
  GradientSums own{0, 0};
  for (int64_t p = threadIdx.x; p < count; p += blockDim.x) {
    own.gradient += parts[p].gradient;
    own.inner += parts[p].inner;
  }
  return {block_sum(own.gradient), block_sum(own.inner)};
}

// dL/dw_k = ratio g_k + (1 - ratio) mean(g) + sum_j g_j (level_j - ratio n_j) (w_k - mean) / ((N -
// 1) scale)
template <class T>
__global__ void __launch_bounds__(statistics_threads)
    exact_gradient_kernel(const T* __restrict__ grad, const T* __restrict__ weight,
                          const float* __restrict__ shift, const float* __restrict__ scale,
                          const GradientSums* __restrict__ parts, int64_t part_count,
                          T* __restrict__ grad_weight, int64_t count, bool aligned) {
  const GradientSums sums = merge_parts(parts, part_count);
  const Slopes slopes(*scale);
  const float mean = *shift;
  const double exact_ratio = double(*scale) / (double(*scale) + epsilon);
  const float offset = float((1 - exact_ratio) * (sums.gradient / double(count)));
  // The standard deviation of a constant matrix has no derivative; it counts as zero.
  const float slope = *scale > 0 ? float(sums.inner / (double(count - 1) * double(*scale))) : 0.f;
  const int64_t groups = (count + group - 1) / group, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t g = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t valid = count - g * group;
    float gradients[group], weights[group];
    load_group(grad + g * group, valid, aligned, gradients);
    load_group(weight + g * group, valid, aligned, weights);
#pragma unroll
    for (int i = 0; i < group; ++i)
      gradients[i] = gradients[i] * slopes.ratio + offset + (weights[i] - mean) * slope;
    store_group(grad_weight + g * group, valid, aligned, gradients);
  }
}

// weight, quantized: `count` values, at least two; parts: statistics_parts(count).
template <class T, int BITS>
void lowbit_fake_quantize(const T* weight, const float* codebook, Moments* parts, T* quantized,
                          float* shift, float* scale, int64_t count, cudaStream_t stream) {
  compute_moments(weight, parts, count, stream);
  const bool aligned = groups_aligned(weight, count, 1) && groups_aligned(quantized, count, 1);
  PETKIT_LAUNCH((fake_quantize_kernel<T, BITS>),
                dim3(stride_blocks(ceil_div(count, group), statistics_threads)),
                dim3(statistics_threads), 0, stream, weight, parts, statistics_parts(count),
                codebook, quantized, shift, scale, count, aligned);
}

template <class T, int BITS>
void lowbit_fake_quantize_backward(const T* grad, const T* weight, const float* shift,
                                   const float* scale, const float* codebook, GradientSums* parts,
                                   T* grad_weight, int64_t count, cudaStream_t stream) {
  const bool aligned = groups_aligned(weight, count, 1) && groups_aligned(grad, count, 1);
  const int64_t part_count = statistics_parts(count);
  PETKIT_LAUNCH((gradient_sums_kernel<T, BITS>), dim3(unsigned(part_count)),
                dim3(statistics_threads), 0, stream, grad, weight, shift, scale, codebook, parts,
                count, aligned);
  PETKIT_LAUNCH((exact_gradient_kernel<T>),
                dim3(stride_blocks(ceil_div(count, group), statistics_threads)),
                dim3(statistics_threads), 0, stream, grad, weight, shift, scale, parts, part_count,
                grad_weight, count, aligned && groups_aligned(grad_weight, count, 1));
}

} // namespace petkit::cuda
