// The quantiser's tables in shared memory, made by each block for itself: 2^bits entries cost less
// than a launch.
#pragma once

#include "codes.cuh"
#include "petkit/quantizer.h"

namespace petkit::cuda {

// cuts[i]: the largest weight that still gets code i. The caller puts a barrier behind.
template <int BITS>
__device__ inline void fill_cuts(float* cuts, const float* __restrict__ codebook, float shift,
                                 float scale) {
  for (int i = int(threadIdx.x); i < levels(BITS) - 1; i += int(blockDim.x))
    cuts[i] = cut(shift, scale, codebook[i], codebook[i + 1]);
}

// values[c]: the weight that code c stands for. The caller puts a barrier behind.
template <int BITS>
__device__ inline void fill_values(float* values, const float* __restrict__ codebook, float shift,
                                   float scale) {
  for (int c = int(threadIdx.x); c < levels(BITS); c += int(blockDim.x))
    values[c] = value(shift, scale, codebook[c]);
}

// How many cuts a weight exceeds, by bisection; a NaN exceeds none.
template <int BITS> __device__ inline unsigned nearest_code(float weight, const float* cuts) {
  unsigned code = 0;
#pragma unroll
  for (unsigned step = unsigned(levels(BITS)) / 2; step > 0; step /= 2)
    if (weight > cuts[code + step - 1])
      code += step;
  return code;
}

} // namespace petkit::cuda
