// bfloat16 and float16 as bit patterns: portable conversions with rounding to nearest, ties to
// even.
#pragma once

#include <cstdint>
#include <cstring>

namespace petkit {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_bfloat16(uint16_t half) { return float_of(uint32_t(half) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value)
    return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00)
    return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // As a float32 pattern the exponent is 112 too small; the product is exact, subnormals included.
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000;
  const float magnitude = float_of(bits & 0x7fffffff);
  if (value != value)
    return uint16_t(sign | 0x7e00);
  if (magnitude >= 65520.0f)
    return uint16_t(sign | 0x7c00);
  if (magnitude < 0x1p-14f) {
    // Adding 0.5 makes the unit in the last place 2**-24, that of subnormal float16, so it rounds
    // there.
    return uint16_t(sign | (bits_of(magnitude + 0.5f) - bits_of(0.5f)));
  }
  const uint32_t pattern = bits_of(magnitude);
  return uint16_t(sign | ((pattern + 0xfff + ((pattern >> 13) & 1)) - (112u << 23)) >> 13);
}

} // namespace petkit
