// Codes of a row-aligned packed matrix (petkit/packed.h), eight at a time and in 32-bit words.
#pragma once

#include <cstdint>
#include <type_traits>

#include "numeric.cuh"
#include "petkit/packed.h"

namespace petkit::cuda {

// Eight codes of BITS bits fill exactly this type.
template <int BITS>
using GroupWord = std::conditional_t<
    BITS == 1, uint8_t,
    std::conditional_t<BITS == 2, uint16_t, std::conditional_t<BITS == 4, uint32_t, uint64_t>>>;

// Whether every whole group of codes of every row starts on a boundary of its word.
inline bool codes_aligned(const uint8_t* base, int64_t row_stride, int64_t rows, int word_bytes) {
  return reinterpret_cast<uintptr_t>(base) % word_bytes == 0 &&
         (rows <= 1 || row_stride % word_bytes == 0);
}

// The codes of group `index` of a row; codes whose bytes lie past the row's end are zero.
template <int BITS>
__device__ inline GroupWord<BITS> load_codes(const uint8_t* row, int64_t index, int64_t row_bytes,
                                             bool aligned) {
  using Word = GroupWord<BITS>;
  const int64_t first = index * BITS;
  if (aligned && first + BITS <= row_bytes)
    return *reinterpret_cast<const Word*>(row + first);
  Word word = 0;
#pragma unroll
  for (int b = 0; b < BITS; ++b)
    if (first + b < row_bytes)
      word |= Word(Word(row[first + b]) << (8 * b));
  return word;
}

template <int BITS>
__device__ inline void store_codes(uint8_t* row, int64_t index, int64_t row_bytes, bool aligned,
                                   GroupWord<BITS> word) {
  const int64_t first = index * BITS;
  if (aligned && first + BITS <= row_bytes) {
    *reinterpret_cast<GroupWord<BITS>*>(row + first) = word;
    return;
  }
#pragma unroll
  for (int b = 0; b < BITS; ++b)
    if (first + b < row_bytes)
      row[first + b] = uint8_t(word >> (8 * b));
}

template <int BITS, class Word> __device__ inline unsigned code_at(Word word, int index) {
  return unsigned(word >> (index * BITS)) & unsigned(levels(BITS) - 1);
}

} // namespace petkit::cuda
