// lowbit_linear and its gradient in x for one instruction set `Isa`.
#pragma once

#include "product_impl.h"

namespace petkit {
namespace {

constexpr int64_t token_chunk = 64;

template <int Bits>
void linear(const PackedMatrix& m, const float* x, int64_t tokens, float* y, int64_t begin,
            int64_t end) {
  const Weights<Bits> weights(m.values);
  const uint8_t* packed = m.packed + begin * row_bytes(m.columns, Bits);
  for (int64_t first = 0; first < tokens; first += token_chunk) {
    const int64_t count = tokens - first < token_chunk ? tokens - first : token_chunk;
    const float* rows[token_chunk];
    for (int64_t t = 0; t < count; ++t)
      rows[t] = x + (first + t) * m.columns;
    dot_tokens<Bits>(weights, packed, end - begin, m.columns, rows, count,
                     y + first * m.rows + begin, m.rows);
  }
}

// Rows go in groups small enough for their bytes of `column_group` columns to stay in the
// first-level cache.
template <int Bits>
void linear_backward(const PackedMatrix& m, const float* g, int64_t tokens, float* gx,
                     int64_t begin, int64_t end) {
  const Weights<Bits> weights(m.values);
  const int64_t bytes = row_bytes(m.columns, Bits);
  for (int64_t first = 0; first < tokens; first += token_chunk) {
    const int64_t count = tokens - first < token_chunk ? tokens - first : token_chunk;
    for (int64_t column = begin; column < end; column += column_group) {
      const int64_t width = end - column < column_group ? end - column : column_group;
      float* places[token_chunk];
      for (int64_t t = 0; t < count; ++t)
        places[t] = gx + (first + t) * m.columns + column;
      for (int64_t row = 0; row < m.rows; row += row_group) {
        const int64_t rows = m.rows - row < row_group ? m.rows - row : row_group;
        sum_tokens<Bits>(weights, m.packed + row * bytes + column * Bits / 8, rows, bytes, width,
                         g + first * m.rows + row, m.rows, count, places, row > 0);
      }
    }
  }
}

void fill_linear(Kernels& k) {
  k.linear[0] = linear<1>, k.linear[1] = linear<2>;
  k.linear[2] = linear<4>, k.linear[3] = linear<8>;
  k.linear_backward[0] = linear_backward<1>, k.linear_backward[1] = linear_backward<2>;
  k.linear_backward[2] = linear_backward<4>, k.linear_backward[3] = linear_backward<8>;
}

} // namespace
} // namespace petkit
