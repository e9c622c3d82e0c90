// A block of tokens through one adapter of a bank, down and up fused, for one instruction set
// `Isa`.
#pragma once

#include "product_impl.h"

namespace petkit {
namespace {

// The weight of each code of a matrix: shift + scale * level.
template <int Bits> void spread(const float* codebook, float shift, float scale, float* values) {
  for (int i = 0; i < levels(Bits); ++i)
    values[i] = value(shift, scale, codebook[i]);
}

// The up-projection by sums of its transposed rows.
struct SumRows {
  template <int Bits>
  static void run(const float* values, const uint8_t* packed, int64_t rows, int64_t columns,
                  const float* a, int64_t tokens, float* const* y) {
    sum_tokens<Bits>(Weights<Bits>(values), packed, rows, row_bytes(columns, Bits), columns, a,
                     rows, tokens, y, false);
  }
};

template <int Bits, class Up>
void bank_block_of(const Bank& bank, const void* x, DType dtype, const BankBlock& block, void* y,
                   float* scratch) {
  float* hidden = scratch;
  float* inputs = hidden + bank_block * bank.hidden;
  float* outputs = inputs + bank_block * bank.in_features;
  float* values = outputs + bank_block * bank.out_features;
  const int64_t item = item_size(dtype), wide = dtype == DType::float32 ? 1 : 0;
  const float* constants = bank.constants + block.adapter * bank_constants;

  const float* rows[bank_block];
  float* places[bank_block];
  for (int64_t t = 0; t < block.count; ++t) {
    const char* source = static_cast<const char*>(x) + block.tokens[t] * bank.in_features * item;
    char* target = static_cast<char*>(y) + block.tokens[t] * bank.out_features * item;
    rows[t] = wide ? reinterpret_cast<const float*>(source) : inputs + t * bank.in_features;
    places[t] = wide ? reinterpret_cast<float*>(target) : outputs + t * bank.out_features;
    if (!wide)
      to_float(source, dtype, inputs + t * bank.in_features, bank.in_features);
  }

  const int64_t down_bytes = bank.hidden * row_bytes(bank.in_features, Bits);
  const int64_t up_stride = row_bytes(bank.out_features, Bits);
  spread<Bits>(bank.levels, constants[0], constants[1], values);
  dot_tokens<Bits>(Weights<Bits>(values), bank.down + block.adapter * down_bytes, bank.hidden,
                   bank.in_features, rows, block.count, hidden, bank.hidden);
  const float scaling = constants[4];
  for (int64_t i = 0; i < block.count * bank.hidden; ++i)
    hidden[i] = scaling * (bank.relu && hidden[i] < 0 ? 0.0f : hidden[i]);
  spread<Bits>(bank.levels, constants[2], constants[3], values);
  Up::template run<Bits>(values, bank.up + block.adapter * bank.hidden * up_stride, bank.hidden,
                         bank.out_features, hidden, block.count, places);

  for (int64_t t = 0; !wide && t < block.count; ++t) {
    char* target = static_cast<char*>(y) + block.tokens[t] * bank.out_features * item;
    from_float(places[t], dtype, target, bank.out_features);
  }
}

template <class Up> void fill_bank(Kernels& k) {
  k.bank[0] = bank_block_of<1, Up>, k.bank[1] = bank_block_of<2, Up>;
  k.bank[2] = bank_block_of<4, Up>, k.bank[3] = bank_block_of<8, Up>;
}

} // namespace
} // namespace petkit
