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
                  const float* a, int64_t tokens, float* const* y, bool add) {
    sum_tokens<Bits>(Weights<Bits>(values), packed, rows, row_bytes(columns, Bits), columns, a,
                     rows, tokens, y, add);
  }
};

// Asks for a row of y some time before it is written. Rows of x are read in order, which the
// hardware foresees; stores to fresh lines it does not.
inline void prefetch_row(const float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    __builtin_prefetch(row + i, 1, 2);
}

// Where the tokens of a block are read and written: in place when they are float32, else in
// buffers.
struct BlockRows {
  const float* x[bank_block];
  float* y[bank_block];

  BlockRows(const Bank& bank, const char* x_data, char* y_data, DType dtype, const BankBlock& block,
            bool add, float* inputs, float* outputs) {
    for (int64_t t = 0; t < block.count; ++t) {
      const int64_t from = block.tokens[t] * bank.in_features,
                    to = block.tokens[t] * bank.out_features;
      if (dtype == DType::float32) {
        x[t] = reinterpret_cast<const float*>(x_data) + from;
        y[t] = reinterpret_cast<float*>(y_data) + to;
      } else {
        float* row = inputs + t * bank.in_features;
        to_float(x_data + from * item_size(dtype), dtype, row, bank.in_features);
        x[t] = row;
        y[t] = outputs + t * bank.out_features;
        if (add)
          to_float(y_data + to * item_size(dtype), dtype, y[t], bank.out_features);
      }
    }
  }
};

template <int Bits, class Up>
void bank_block_of(const Bank& bank, const void* x, DType dtype, const BankBlock& block, void* y,
                   bool add, float* scratch) {
  float* hidden = scratch;
  float* inputs = hidden + bank_block * bank.hidden;
  float* outputs = inputs + bank_block * bank.in_features;
  float* values = outputs + bank_block * bank.out_features;
  const char* x_data = static_cast<const char*>(x);
  char* y_data = static_cast<char*>(y);
  const BlockRows rows(bank, x_data, y_data, dtype, block, add, inputs, outputs);
  const float* constants = bank.constants + block.adapter * bank_constants;
  const int64_t down_bytes = bank.hidden * row_bytes(bank.in_features, Bits);
  const int64_t up_bytes = bank.hidden * row_bytes(bank.out_features, Bits);

  spread<Bits>(bank.levels, constants[0], constants[1], values);
  const Weights<Bits> down(values);
  for (int64_t first = 0; first < block.count; first += 4) {
    const int64_t count = block.count - first < 4 ? block.count - first : 4;
    for (int64_t t = first; t < first + count; ++t)
      prefetch_row(rows.y[t], bank.out_features);
    dot_tokens<Bits>(down, bank.down + block.adapter * down_bytes, bank.hidden, bank.in_features,
                     rows.x + first, count, hidden + first * bank.hidden, bank.hidden);
  }
  const float scaling = constants[4];
  for (int64_t i = 0; i < block.count * bank.hidden; ++i)
    hidden[i] = scaling * (bank.relu && hidden[i] < 0 ? 0.0f : hidden[i]);
  spread<Bits>(bank.levels, constants[2], constants[3], values);
  Up::template run<Bits>(values, bank.up + block.adapter * up_bytes, bank.hidden, bank.out_features,
                         hidden, block.count, rows.y, add);

  for (int64_t t = 0; dtype != DType::float32 && t < block.count; ++t) {
    const int64_t to = block.tokens[t] * bank.out_features * item_size(dtype);
    from_float(rows.y[t], dtype, y_data + to, bank.out_features);
  }
}

template <class Up> void fill_bank(Kernels& k) {
  k.bank[0] = bank_block_of<1, Up>, k.bank[1] = bank_block_of<2, Up>;
  k.bank[2] = bank_block_of<4, Up>, k.bank[3] = bank_block_of<8, Up>;
}

} // namespace
} // namespace petkit
