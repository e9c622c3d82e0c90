// The packed layouts, defined once. Codes are unsigned level numbers of 1, 2, 4 or 8 bits.
//
// Within a byte the least significant bits come first: code j of a byte of 8/bits codes sits at bit
// j*bits. Flat stream (files): all codes of an (out, in) matrix in row-major order, zero padding
// only at the very end. Row-aligned (operators): each row starts on a byte, row_bytes(in, bits)
// bytes a row, zero padding at each row's end.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define PETKIT_HOST_DEVICE __host__ __device__
#else
#define PETKIT_HOST_DEVICE
#endif

namespace petkit {

PETKIT_HOST_DEVICE constexpr int64_t row_bytes(int64_t in_features, int bits) {
  return (in_features * bits + 7) / 8;
}

PETKIT_HOST_DEVICE constexpr int levels(int bits) { return 1 << bits; }

PETKIT_HOST_DEVICE inline unsigned read_code(const uint8_t* row, int64_t index, int bits) {
  const int64_t bit = index * bits;
  return (unsigned(row[bit >> 3]) >> (bit & 7)) & unsigned(levels(bits) - 1);
}

} // namespace petkit
