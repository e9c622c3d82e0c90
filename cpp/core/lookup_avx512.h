// lowbit_linear by table lookup on AVX-512, for 1, 2 and 4 bits and many rows.
//
// Four bits of a row hold the codes of 4, 2 or 1 columns. Their 16 possible contributions to a
// token's sum are tabled in one register, in which a permutation looks up 16 rows at once: one
// shift, one permutation and one addition for up to 64 weights. Codes are read 16 rows by 32 bytes
// and transposed, so that a lane holds a row. A lane adds its columns in order and nothing depends
// on how tokens or rows were split.
#pragma once

#include "linear_impl.h"

namespace petkit {
namespace {

constexpr int lookup_rows = 16;
constexpr int panel_bytes = 32; // of a row, at most
constexpr int panel_words = panel_bytes / 4;
constexpr int table_budget = 1024;        // tables at a time, 64 KiB in the second-level cache
constexpr int64_t lookup_block_rows = 64; // share the tables of a panel in the first-level cache

// The contributions of one table's columns: entry n is the sum over columns c of value[code c of n]
// * x[c].
template <int Bits> struct Tabulate {
  static constexpr int columns = 4 / Bits;
  __m512 factor[columns];

  explicit Tabulate(const float* values) {
    for (int c = 0; c < columns; ++c) {
      alignas(64) float entries[16];
      for (int n = 0; n < 16; ++n)
        entries[n] = values[n >> (c * Bits) & ((1 << Bits) - 1)];
      factor[c] = _mm512_load_ps(entries);
    }
  }
  __m512 operator()(const float* x) const {
    __m512 sum = _mm512_mul_ps(factor[0], _mm512_set1_ps(x[0]));
    for (int c = 1; c < columns; ++c)
      sum = _mm512_fmadd_ps(factor[c], _mm512_set1_ps(x[c]), sum);
    return sum;
  }
};

// Tables of `columns` columns of one token; those behind the last column stay as if x were zero
// there.
template <int Bits>
inline void fill_tables(const Tabulate<Bits>& tabulate, const float* x, int64_t columns,
                        float* tables) {
  constexpr int step = Tabulate<Bits>::columns;
  int64_t c = 0;
  for (; c + step <= columns; c += step, tables += 16)
    _mm512_storeu_ps(tables, tabulate(x + c));
  if (c < columns) {
    float rest[step] = {};
    for (int64_t i = 0; c + i < columns; ++i)
      rest[i] = x[c + i];
    _mm512_storeu_ps(tables, tabulate(rest));
  }
}

// Reads 16 rows of 32 bytes; word[i] gets bytes 4 i to 4 i + 3 of row r in lane r.
inline void load_words(const uint8_t* p, int64_t stride, __m512i* word) {
  __m512i row[8], pair[8], quad[8];
  for (int r = 0; r < 8; ++r) {
    const auto* low = reinterpret_cast<const __m256i*>(p + r * stride);
    const auto* high = reinterpret_cast<const __m256i*>(p + (r + 8) * stride);
    row[r] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                                _mm256_loadu_si256(high), 1);
  }
  for (int r = 0; r < 8; r += 2) {
    pair[r] = _mm512_unpacklo_epi32(row[r], row[r + 1]);
    pair[r + 1] = _mm512_unpackhi_epi32(row[r], row[r + 1]);
  }
  // quad[k] and quad[k + 4] hold column k of their 128-bit lane for rows 0 to 3 and 4 to 7.
  for (int half = 0; half < 8; half += 4) {
    quad[half] = _mm512_unpacklo_epi64(pair[half], pair[half + 2]);
    quad[half + 1] = _mm512_unpackhi_epi64(pair[half], pair[half + 2]);
    quad[half + 2] = _mm512_unpacklo_epi64(pair[half + 1], pair[half + 3]);
    quad[half + 3] = _mm512_unpackhi_epi64(pair[half + 1], pair[half + 3]);
  }
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  for (int k = 0; k < 4; ++k) {
    word[k] = _mm512_permutex2var_epi64(quad[k], even, quad[k + 4]);
    word[k + 4] = _mm512_permutex2var_epi64(quad[k], odd, quad[k + 4]);
  }
}

// Adds `bytes` bytes of codes of a panel to y for 16 rows and T tokens, whose tables lie
// `token_stride` floats apart.
template <int T>
inline void lookup_tile(const __m512i* word, int bytes, const float* tables, int64_t token_stride,
                        float* y, int64_t y_stride, bool more) {
  __m512 sum[T], other[T];
  for (int t = 0; t < T; ++t) {
    sum[t] = more ? _mm512_loadu_ps(y + t * y_stride) : _mm512_setzero_ps();
    other[t] = _mm512_setzero_ps();
  }
  const auto add = [&](__m512i codes, const float* table) {
    const __m512i next = _mm512_srli_epi32(codes, 4);
    for (int t = 0; t < T; ++t, table += token_stride) {
      sum[t] = _mm512_add_ps(sum[t], _mm512_permutexvar_ps(codes, _mm512_load_ps(table)));
      other[t] = _mm512_add_ps(other[t], _mm512_permutexvar_ps(next, _mm512_load_ps(table + 16)));
    }
  };
  int byte = 0;
  for (; byte + 4 <= bytes; byte += 4, tables += 128) {
    const __m512i codes = word[byte / 4];
    add(codes, tables);
    add(_mm512_srli_epi32(codes, 8), tables + 32);
    add(_mm512_srli_epi32(codes, 16), tables + 64);
    add(_mm512_srli_epi32(codes, 24), tables + 96);
  }
  for (int place = 0; byte < bytes; ++byte, place += 8, tables += 32)
    add(_mm512_srl_epi32(word[byte / 4], _mm_cvtsi32_si128(place)), tables);
  for (int t = 0; t < T; ++t)
    _mm512_storeu_ps(y + t * y_stride, _mm512_add_ps(sum[t], other[t]));
}

// The words of 16 rows, `bytes` of each wanted, `left` bytes away from the end of the matrix.
inline void load_panel(const uint8_t* packed, int64_t stride, int64_t bytes, int64_t left,
                       __m512i* word) {
  if (left >= (lookup_rows - 1) * stride + panel_bytes) {
    load_words(packed, stride, word);
  } else {
    uint8_t copy[lookup_rows][panel_bytes] = {};
    for (int r = 0; r < lookup_rows; ++r)
      std::memcpy(copy[r], packed + r * stride, size_t(bytes));
    load_words(copy[0], panel_bytes, word);
  }
}

// The tables of some tokens for a span of columns, and what they are looked up with.
struct Span {
  const float* tables; // of token t from t * token_stride on, two for each byte of a row
  int64_t token_stride;
  const uint8_t* packed; // at the span's first column
  int64_t bytes, stride; // of the span in a row, and from row to row
  int64_t left;          // bytes from `packed` to the end of the matrix
};

// Asks for a panel of a later block: its rows lie a stride apart, which no hardware foresees. A
// cache line holds two panels.
inline void prefetch_panel(const Span& span, int64_t row, int64_t first) {
  if (first % 64 != 0 || (row + lookup_rows) * span.stride > span.left)
    return;
  const uint8_t* place = span.packed + row * span.stride + first;
  for (int r = 0; r < lookup_rows; ++r)
    _mm_prefetch(reinterpret_cast<const char*>(place + r * span.stride), _MM_HINT_T1);
}

// y of `tokens` tokens for a block of rows, panel by panel.
inline void lookup_block(const Span& span, int64_t tokens, int64_t begin, int64_t end, float* y,
                         int64_t y_stride, bool more) {
  for (int64_t first = 0; first < span.bytes; first += panel_bytes) {
    const int bytes = int(span.bytes - first < panel_bytes ? span.bytes - first : panel_bytes);
    const float* tables = span.tables + first * 2 * 16;
    for (int64_t row = begin; row < end; row += lookup_rows) {
      __m512i word[panel_words];
      const int64_t offset = row * span.stride + first;
      load_panel(span.packed + offset, span.stride, bytes, span.left - offset, word);
      const bool later = more || first > 0;
      int64_t t = 0;
      for (; t + 4 <= tokens; t += 4)
        lookup_tile<4>(word, bytes, tables + t * span.token_stride, span.token_stride,
                       y + t * y_stride + row, y_stride, later);
      for (; t < tokens; ++t)
        lookup_tile<1>(word, bytes, tables + t * span.token_stride, span.token_stride,
                       y + t * y_stride + row, y_stride, later);
      prefetch_panel(span, row + lookup_block_rows, first);
    }
  }
}

// y for rows [begin, end), a multiple of 16 rows.
template <int Bits>
void lookup(const PackedMatrix& m, const float* x, int64_t tokens, float* y, int64_t begin,
            int64_t end) {
  alignas(64) float tables[table_budget * 16];
  const Tabulate<Bits> tabulate(m.values);
  const int64_t stride = row_bytes(m.columns, Bits);
  // Whole panels for as many tokens as go together. Where spans end has no influence on the sums.
  const int64_t width = table_budget / (tokens > 2 ? 4 : tokens) * (4 / Bits);
  for (int64_t first = 0; first < m.columns; first += width) {
    const int64_t columns = m.columns - first < width ? m.columns - first : width;
    const int64_t offset = first * Bits / 8, bytes = row_bytes(columns, Bits);
    const Span span{tables, bytes * 2 * 16, m.packed + offset,
                    bytes,  stride,         m.rows * stride - offset};
    const int64_t chunk = table_budget * 16 / span.token_stride;
    for (int64_t token = 0; token < tokens; token += chunk) {
      const int64_t count = tokens - token < chunk ? tokens - token : chunk;
      std::memset(tables, 0, size_t(count * span.token_stride) * sizeof(float));
      for (int64_t t = 0; t < count; ++t)
        fill_tables<Bits>(tabulate, x + (token + t) * m.columns + first, columns,
                          tables + t * span.token_stride);
      for (int64_t row = begin; row < end; row += lookup_block_rows)
        lookup_block(span, count, row,
                     end - row < lookup_block_rows ? end : row + lookup_block_rows,
                     y + token * m.rows, m.rows, first > 0);
    }
  }
}

// Tables pay off from two groups of rows on; what is left over goes through dot products.
template <int Bits>
void linear_by_lookup(const PackedMatrix& m, const float* x, int64_t tokens, float* y,
                      int64_t begin, int64_t end) {
  const int64_t grouped = m.rows >= 2 * lookup_rows ? m.rows / lookup_rows * lookup_rows : 0;
  const int64_t split = end < grouped ? end : begin > grouped ? begin : grouped;
  if (begin < split && m.columns > 0)
    lookup<Bits>(m, x, tokens, y, begin, split);
  else if (begin < split)
    linear<Bits>(m, x, tokens, y, begin, split);
  if (split < end)
    linear<Bits>(m, x, tokens, y, split, end);
}

inline void fill_lookup(Kernels& k) {
  k.linear[0] = linear_by_lookup<1>;
  k.linear[1] = linear_by_lookup<2>;
  k.linear[2] = linear_by_lookup<4>;
}

} // namespace
} // namespace petkit
