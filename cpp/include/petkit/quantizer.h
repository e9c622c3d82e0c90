// The quantiser's arithmetic, defined once so that every kernel, CPU or CUDA, gives the same codes
// and values.
//
// shift = mean and scale = unbiased standard deviation, summed in double and rounded to float once.
// All else is a function of (weight, shift, scale, levels):
//   code  = number of i with weight > shift + (scale + 1e-5) * threshold_i, threshold_i = (level_i
//   + level_{i+1}) / 2,
//           evaluated in double: the nearest level of n = (w - mean) / (std + eps), a tie going to
//           the lower level.
//   value = shift + scale * level[code] in float, two roundings, never fused.
// A float exceeds a double exactly when it exceeds the largest float not above that double, so a
// kernel compares floats with `cut`. The division by std + eps is never carried out.
#pragma once

#include <cmath>

#include "petkit/packed.h"

namespace petkit {

constexpr double epsilon = 1e-5;

// The largest float that is not above the boundary between level i and level i + 1.
PETKIT_HOST_DEVICE inline float cut(float shift, float scale, float level, float next_level) {
  const double threshold = (double(level) + double(next_level)) / 2;
  const double boundary = double(shift) + (double(scale) + epsilon) * threshold;
  const float rounded = float(boundary);
  return double(rounded) > boundary ? nextafterf(rounded, -INFINITY) : rounded;
}

// The weight that a level stands for. Host code is compiled with -ffp-contract=off: a fused
// multiply-add would differ in the last bit.
PETKIT_HOST_DEVICE inline float value(float shift, float scale, float level) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(shift, __fmul_rn(scale, level));
#else
  const float scaled = scale * level;
  return shift + scaled;
#endif
}

} // namespace petkit
