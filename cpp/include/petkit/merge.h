// Merging models: what the kernels are given and give back. Torch-free.
//
// A slice is a run of numbers of one tensor, the same in the base and in each model; places are
// counted from its start.
#pragma once

#include <cstdint>

#include "petkit/dtype.h"

namespace petkit {

// The weighted sum of models, in the order of the rows.
struct LinearMerge {
  const char* const* rows;
  const float* weights;
  int64_t models; // at least 1
  DType dtype;
};

// How the differences of one model to the base count.
struct DeltaTerm {
  const char* row;
  float weight;
  float low, high; // differences of another magnitude are left out
  float keep;      // what the others are divided by, where share is below 2**24
  uint32_t share;  // differences are kept where the upper 24 random bits lie below
  uint64_t state;  // of the random bits of the slice's first place
};

enum class Consensus { none, sum, count };

struct DeltaMerge {
  const char* base;
  const DeltaTerm* terms;
  int64_t models; // at least 1
  DType dtype;
  Consensus consensus;
  bool normalize;
  float divisor; // the sum of all weights
  float factor;
};

// How many magnitudes lie where, with respect to low <= high; nan lie nowhere.
struct Places {
  int64_t below, at_low, between, at_high; // at_high is 0 where high is low
};

struct MergeKernels {
  // Fill places [first, first + count) of `out`.
  void (*linear)(const LinearMerge& merge, int64_t first, int64_t count, void* out, DType result);
  // `scratch` holds merge_scratch floats.
  void (*deltas)(const DeltaMerge& merge, int64_t first, int64_t count, void* out, DType result,
                 float* scratch);

  // Count magnitudes of model - base in `bins`, magnitude_bins numbers in several tables side by
  // side, whose sum it is: by their upper 16 bits in tables of upper_bins, or those that have one
  // `upper` half by their lower 16 bits in tables of lower_bins.
  void (*upper_halves)(const void* base, const void* model, DType dtype, int64_t count,
                       uint32_t* bins);
  void (*lower_halves)(const void* base, const void* model, DType dtype, int64_t count,
                       uint32_t upper, uint32_t* bins);

  // Count magnitudes of model - base, at most within_block, and write those between to `values`,
  // which holds within_values floats.
  Places (*within)(const void* base, const void* model, DType dtype, int64_t count, float low,
                   float high, float* values);

  bool (*finite)(const void* x, DType dtype, int64_t count);
};

// Places that are merged together, few enough for the first-level cache.
constexpr int64_t merge_tile = 256;

constexpr int64_t merge_scratch(int64_t models) { return (models + 2) * merge_tile; }

constexpr int64_t upper_bins = 1 << 15, lower_bins = 1 << 16, magnitude_bins = 1 << 17;

// Few enough that floats count them, and that the values between stay in the second-level cache.
constexpr int64_t within_block = 1 << 14, within_values = within_block + 16;

} // namespace petkit
