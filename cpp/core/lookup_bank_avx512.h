// The up-projection of a bank by table lookup on AVX-512.
//
// Up is stored transposed, a row for each hidden value. The codes of 4 / Bits hidden values, 4 bits
// in all, are gathered per column into a lane; each token tables their 16 possible sums and looks
// up 16 columns at once. The gathering is shared by the tokens of a block. A token's result does
// not depend on the others.
#pragma once

#include "bank_impl.h"
#include "lookup_avx512.h"

namespace petkit {
namespace {

// Adds the codes of 16 columns of one row to the lanes' codes, `place` bits up.
template <int Bits> inline __m512i add_codes(__m512i codes, const uint8_t* vector, int place) {
  if constexpr (Bits == 1) {
    return _mm512_mask_or_epi32(codes, Isa::load_mask(vector), codes, Isa::codes(1 << place));
  } else {
    const __m512i shift = Isa::codes(place);
    return _mm512_or_si512(codes, _mm512_sllv_epi32(Isa::unpack<Bits>(vector), shift));
  }
}

// Four bits for each of 16 columns: the codes of `rows` <= 4 / Bits consecutive rows, of which
// `bytes` bytes may be read.
template <int Bits>
inline __m512i gather_codes(const uint8_t* packed, int64_t rows, int64_t stride, int64_t bytes) {
  constexpr int step = 4 / Bits;
  __m512i codes = _mm512_setzero_si512();
  if (rows == step && bytes >= 2 * Bits) {
    for (int r = 0; r < step; ++r)
      codes = add_codes<Bits>(codes, packed + r * stride, r * Bits);
    return codes;
  }
  for (int r = 0; r < rows; ++r) {
    uint8_t vector[2 * Bits] = {};
    std::memcpy(vector, packed + r * stride, size_t(bytes < 2 * Bits ? bytes : 2 * Bits));
    codes = add_codes<Bits>(codes, vector, r * Bits);
  }
  return codes;
}

struct LookupRows {
  static constexpr int tables = 8;   // whose sums are added to y in one go
  static constexpr int vectors = 16; // of columns in one go

  template <int Bits>
  static void run(const float* values, const uint8_t* packed, int64_t rows, int64_t columns,
                  const float* a, int64_t tokens, float* const* y) {
    if constexpr (Bits == 8) {
      SumRows::run<Bits>(values, packed, rows, columns, a, tokens, y);
    } else {
      constexpr int step = 4 / Bits;
      const Tabulate<Bits> tabulate(values);
      const int64_t stride = row_bytes(columns, Bits);
      if (rows == 0)
        SumRows::run<Bits>(values, packed, rows, columns, a, tokens, y);
      for (int64_t row = 0; row < rows; row += tables * step) {
        const int64_t count = rows - row < tables * step ? rows - row : tables * step;
        alignas(64) float table[bank_block][tables][16] = {};
        for (int64_t t = 0; t < tokens; ++t)
          fill_tables<Bits>(tabulate, a + t * rows + row, count, table[t][0]);
        for (int64_t column = 0; column < columns; column += 16 * vectors) {
          const int64_t width = columns - column < 16 * vectors ? columns - column : 16 * vectors;
          add_columns<Bits>(packed + row * stride + column * Bits / 8, count, stride, width, table,
                            tokens, y, column, row > 0);
        }
      }
    }
  }

  using Tables = const float (*)[tables][16]; // of each token
  using Codes = const __m512i (*)[tables];    // of each vector of columns

  template <int Bits>
  static void add_columns(const uint8_t* packed, int64_t rows, int64_t stride, int64_t width,
                          Tables table, int64_t tokens, float* const* y, int64_t column,
                          bool more) {
    constexpr int step = 4 / Bits;
    const int used = int((rows + step - 1) / step);
    __m512i codes[vectors][tables];
    for (int64_t c = 0; c < width; c += 16) {
      for (int i = 0; i < used; ++i) {
        const int64_t left = rows - i * step;
        codes[c / 16][i] =
            gather_codes<Bits>(packed + i * step * stride + c * Bits / 8, left < step ? left : step,
                               stride, row_bytes(width - c, Bits));
      }
    }
    constexpr decltype(&add_tables<1>) by_count[tables] = {
        add_tables<1>, add_tables<2>, add_tables<3>, add_tables<4>,
        add_tables<5>, add_tables<6>, add_tables<7>, add_tables<8>};
    for (int64_t t = 0; t < tokens; ++t)
      by_count[used - 1](table[t], codes, width, y[t] + column, more);
  }

  // With their number known, the tables of the token stay in registers.
  template <int Used>
  static void add_tables(const float (*table)[16], Codes codes, int64_t width, float* y,
                         bool more) {
    __m512 entries[Used];
    for (int i = 0; i < Used; ++i)
      entries[i] = _mm512_load_ps(table[i]);
    for (int64_t c = 0; c < width; c += 16) {
      const __mmask16 lanes = width - c < 16 ? __mmask16((1 << (width - c)) - 1) : 0xffff;
      __m512 sum = _mm512_permutexvar_ps(codes[c / 16][0], entries[0]);
      for (int i = 1; i < Used; ++i)
        sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(codes[c / 16][i], entries[i]));
      if (more)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, y + c));
      _mm512_mask_storeu_ps(y + c, lanes, sum);
    }
  }
};

} // namespace
} // namespace petkit
