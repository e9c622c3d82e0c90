// Transposition of packed matrices.
#pragma once

#include <cstdint>
#include <cstring>

#include "petkit/packed.h"

namespace petkit {

// Transposes 8 by 8 bits: bit c of byte r becomes bit r of byte c. Swaps blocks of 1, 2 and 4
// across the diagonal.
inline uint64_t transpose_bits(uint64_t block) {
  uint64_t moved = (block ^ (block >> 7)) & 0x00aa00aa00aa00aa;
  block ^= moved ^ (moved << 7);
  moved = (block ^ (block >> 14)) & 0x0000cccc0000cccc;
  block ^= moved ^ (moved << 14);
  moved = (block ^ (block >> 28)) & 0x00000000f0f0f0f0;
  return block ^ moved ^ (moved << 28);
}

// Row-aligned (rows, columns) to row-aligned (columns, rows); padding becomes zero.
inline void transpose(const uint8_t* packed, int64_t rows, int64_t columns, int bits,
                      uint8_t* out) {
  const int64_t stride = row_bytes(columns, bits), out_stride = row_bytes(rows, bits);
  std::memset(out, 0, size_t(columns * out_stride));
  const int64_t whole = bits == 1 ? rows / 8 * 8 : 0;
  for (int64_t row = 0; row < whole; row += 8) {
    for (int64_t column = 0; column < columns; column += 8) {
      uint64_t block = 0;
      for (int r = 0; r < 8; ++r)
        block |= uint64_t(packed[(row + r) * stride + column / 8]) << (8 * r);
      block = transpose_bits(block);
      for (int64_t c = 0; c < 8 && column + c < columns; ++c)
        out[(column + c) * out_stride + row / 8] = uint8_t(block >> (8 * c));
    }
  }
  for (int64_t row = whole; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const unsigned code = read_code(packed + row * stride, column, bits);
      out[column * out_stride + row * bits / 8] |= uint8_t(code << (row * bits % 8));
    }
  }
}

} // namespace petkit
