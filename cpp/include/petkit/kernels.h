// The table of CPU kernels: one instance per instruction set, chosen at run time. Torch-free.
//
// Kernels work on float32 spans and raw pointers, allocate nothing and never fork: cpp/ops splits
// the work, converts other dtypes block by block and joins once per call. Arrays of four hold the
// variants for 1, 2, 4 and 8 bits, see `variant`.
#pragma once

#include <cstdint>

#include "petkit/beam_crf.h"
#include "petkit/crf.h"
#include "petkit/divergence.h"
#include "petkit/dtype.h"
#include "petkit/merge.h"

namespace petkit {

// Position of a number of bits in the kernel arrays.
constexpr int variant(int bits) { return bits == 1 ? 0 : bits == 2 ? 1 : bits == 4 ? 2 : 3; }

struct Sums {
  double first, second;
};

// A matrix of packed codes and the weight that each code stands for.
struct PackedMatrix {
  const uint8_t* packed; // row-aligned (rows, row_bytes)
  int64_t rows, columns;
  int bits;
  const float* values; // 2**bits
};

// One fake-quantised matrix: what its gradient needs. `bounds` as in encode.
struct Straight {
  const float *bounds, *levels;
  float shift;
  float inverse; // std / (std + eps) ** 2, which turns w - mean into r n
};

// The bank of adapters: y = up(act(down x)), `down` (n, hidden, row_bytes(in)) and `up` transposed,
// (n, hidden, row_bytes(out)); a row of `constants` is down shift, down scale, up shift, up scale,
// scaling.
struct Bank {
  const uint8_t *down, *up;
  const float *constants, *levels;
  int64_t hidden, in_features, out_features;
  int bits;
  bool relu;
};

constexpr int bank_constants = 5;

// Tokens that share an adapter and are computed together; `tokens` lists their rows of x and y.
struct BankBlock {
  int64_t adapter;
  const int64_t* tokens;
  int64_t count; // 1 to bank_block
};

constexpr int64_t bank_block = 16;

// Sums over logits x of one row, with d = factor (x - maximum), of 2**d, d 2**d and d**2 2**d.
// `factor` is log2(e) over the temperature, so that 2**d is exp((x - maximum) / temperature).
struct SoftmaxSums {
  float maximum;
  double weight, first, second;
  float highest; // of this block alone
};

// The gradient of a logit: 2**d (constant + slope d).
struct SoftmaxSlope {
  float maximum, factor;
  float constant, slope;
};

struct Kernels {
  const char* name;

  void (*to_float)(const void* source, DType dtype, float* target, int64_t count);
  void (*from_float)(const float* source, DType dtype, void* target, int64_t count);

  // Sum and sum of squares of w - pivot, in double and in an order that all instruction sets share.
  Sums (*moments)(const float* w, int64_t count, float pivot);

  // Codes: how many of bounds[1..] each weight exceeds; bounds[0] is -inf. Fills row_bytes(count)
  // bytes.
  void (*encode[4])(const float* w, int64_t count, const float* bounds, uint8_t* packed);
  void (*decode[4])(const uint8_t* packed, int64_t count, const float* values, float* out);

  // encode followed by decode without the codes.
  void (*round[4])(const float* w, int64_t count, const float* bounds, const float* values,
                   float* out);

  // Sum of g, and of g * (level - r n).
  Sums (*straight_sums[4])(const Straight& s, const float* w, const float* g, int64_t count);
  // out = ratio * g + offset + slope * (w - shift).
  void (*affine)(const float* w, const float* g, int64_t count, float shift, const float terms[3],
                 float* out);

  // y[t * matrix.rows + r] for r in [begin, end), x of shape (tokens, columns). `begin` must be a
  // multiple of `row_group`.
  void (*linear[4])(const PackedMatrix& matrix, const float* x, int64_t tokens, float* y,
                    int64_t begin, int64_t end);
  // gx[t * matrix.columns + c] for c in [begin, end), g of shape (tokens, rows). `begin` must be a
  // multiple of `column_group`.
  void (*linear_backward[4])(const PackedMatrix& matrix, const float* g, int64_t tokens, float* gx,
                             int64_t begin, int64_t end);

  // Sets, or with `add` increases, the block's rows of y. `scratch` holds bank_scratch(bank)
  // floats.
  void (*bank[4])(const Bank& bank, const void* x, DType dtype, const BankBlock& block, void* y,
                  bool add, float* scratch);

  // The sums of one block of a row, relative to the maximum of the row up to and including it;
  // `before` is the maximum up to there. All zero for a block that lies more than `gap` below, nan
  // where a logit is.
  SoftmaxSums (*softmax_sums)(const void* x, DType dtype, int64_t count, float factor, float before,
                              float gap);
  void (*softmax_gradient)(const void* x, DType dtype, int64_t count, const SoftmaxSlope& slope,
                           void* out);
  // Writes the positions of the values above a bound, and of any nan, in rising order and returns
  // how many there are.
  int64_t (*positions_above)(const float* x, int64_t count, float bound, int32_t* positions);

  CrfKernels<float> crf;
  BeamKernels<float> beam_crf;
  DivergenceKernels divergence;
  MergeKernels merge;
};

constexpr int64_t row_group = 64;
constexpr int64_t column_group = 256;

constexpr int64_t bank_scratch(const Bank& bank) {
  return bank_block * (bank.in_features + bank.hidden + bank.out_features) + 2 * 256;
}

// The kernels in use; at first the best that this machine and the build share.
const Kernels& kernels();

// Kernels that run here, the preferred ones first; ends with nullptr.
const Kernels* const* available_kernels();

// Switches to the kernels of a name; false when they do not run here.
bool use_kernels(const char* name);

} // namespace petkit
