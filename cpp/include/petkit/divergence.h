// Divergences between two rows of logits, a of a student and b of a teacher: what the kernels are
// given and give back. Torch-free.
//
// With d = (x - maximum) log2(e) / temperature of each row, its softmax is 2**d over the sum of all
// 2**d; distances are in units of log 2, results that say so in nats.
#pragma once

#include <cstdint>

namespace petkit {

struct LogitPair {
  float maximum_a, maximum_b;
  float factor; // log2(e) over the temperature
};

struct PairSums {
  double a, b;             // of 2**da and of 2**db
  double a_cross, b_cross; // of 2**da (da - db) and of 2**db (db - da)
};

// The mixture of both softmaxes is, but for a factor, 2**da + share 2**db.
struct MixtureSums {
  double a, b; // of 2**da ua and of 2**db ub, u the nats of d less the logarithm of the mixture
};

// Gradients in a, with two constants each:
//   apart    first 2**da - second 2**db
//   against  first 2**da (log 2 (da - db) - second)
//   mixed    first 2**da (ua - second)
struct DivergenceSlope {
  float first, second;
  float share; // of `mixed` alone
};

struct DivergenceKernels {
  // A nan may or may not show here; it does in every sum.
  float (*highest)(const float* x, int64_t count);
  PairSums (*sums)(const LogitPair& pair, const float* a, const float* b, int64_t count);
  MixtureSums (*mixture)(const LogitPair& pair, float share, const float* a, const float* b,
                         int64_t count);
  // `out` may be `a`.
  void (*apart)(const LogitPair& pair, const DivergenceSlope& slope, const float* a, const float* b,
                int64_t count, float* out);
  void (*against)(const LogitPair& pair, const DivergenceSlope& slope, const float* a,
                  const float* b, int64_t count, float* out);
  void (*mixed)(const LogitPair& pair, const DivergenceSlope& slope, const float* a, const float* b,
                int64_t count, float* out);
};

} // namespace petkit
