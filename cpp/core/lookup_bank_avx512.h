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
  static constexpr int tables = 8;         // whose sums are added to y in one go
  static constexpr int code_vectors = 256; // 16 KiB in the first-level cache

  using Tables = const float (*)[16]; // of one token

  template <int Bits>
  static void run(const float* values, const uint8_t* packed, int64_t rows, int64_t columns,
                  const float* a, int64_t tokens, float* const* y, bool add) {
    if constexpr (Bits == 8) {
      SumRows::run<Bits>(values, packed, rows, columns, a, tokens, y, add);
    } else {
      constexpr int step = 4 / Bits;
      const Tabulate<Bits> tabulate(values);
      if (rows == 0)
        SumRows::run<Bits>(values, packed, rows, columns, a, tokens, y, add);
      for (int64_t row = 0; row < rows; row += tables * step) {
        const int64_t count = rows - row < tables * step ? rows - row : tables * step;
        alignas(64) float table[bank_block][tables][16] = {};
        for (int64_t t = 0; t < tokens; ++t)
          fill_tables<Bits>(tabulate, a + t * rows + row, count, table[t][0]);
        add_rows<Bits>(packed + row * row_bytes(columns, Bits), count, columns, table, tokens, y,
                       add || row > 0);
      }
    }
  }

  // Columns go in panels as wide as the codes of all their lookups fit, so that rows of y are
  // written in long runs.
  template <int Bits>
  static void add_rows(const uint8_t* packed, int64_t rows, int64_t columns,
                       const float (*table)[tables][16], int64_t tokens, float* const* y,
                       bool more) {
    constexpr int step = 4 / Bits;
    constexpr decltype(&add_tables<1>) by_count[tables] = {
        add_tables<1>, add_tables<2>, add_tables<3>, add_tables<4>,
        add_tables<5>, add_tables<6>, add_tables<7>, add_tables<8>};
    const int used = int((rows + step - 1) / step);
    const int64_t stride = row_bytes(columns, Bits), panel = code_vectors / used * 16;
    for (int64_t first = 0; first < columns; first += panel) {
      const int64_t width = columns - first < panel ? columns - first : panel;
      __m512i codes[code_vectors];
      __m512i* next = codes;
      for (int64_t c = first; c < first + width; c += 16)
        for (int64_t row = 0; row < rows; row += step, ++next)
          *next = gather_codes<Bits>(packed + row * stride + c * Bits / 8,
                                     rows - row < step ? rows - row : step, stride,
                                     row_bytes(columns - c, Bits));
      for (int64_t t = 0; t < tokens; ++t)
        by_count[used - 1](table[t], codes, width, y[t] + first, more);
    }
  }

  // With their number known, the tables of the token stay in registers.
  template <int Used>
  static void add_tables(Tables table, const __m512i* codes, int64_t width, float* y, bool more) {
    __m512 entries[Used];
    for (int i = 0; i < Used; ++i)
      entries[i] = _mm512_load_ps(table[i]);
    for (int64_t c = 0; c < width; c += 16, codes += Used) {
      const __mmask16 lanes = width - c < 16 ? __mmask16((1 << (width - c)) - 1) : 0xffff;
      __m512 sum = _mm512_permutexvar_ps(codes[0], entries[0]);
      for (int i = 1; i < Used; ++i)
        sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(codes[i], entries[i]));
      if (more)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, y + c));
      _mm512_mask_storeu_ps(y + c, lanes, sum);
    }
  }
};

} // namespace
} // namespace petkit
