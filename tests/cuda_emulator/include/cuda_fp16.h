// Stands in for CUDA's header: the 16-bit IEEE type, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, exponent = value.bits >> 10 & 31;
  const uint32_t fraction = value.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    const uint32_t raw = 0x7f800000 | fraction << 13;
    std::memcpy(&magnitude, &raw, 4);
  } else if (exponent == 0) {
    magnitude = float(fraction) * 0x1p-24f;
  } else {
    const uint32_t raw = (exponent + 112) << 23 | fraction << 13;
    std::memcpy(&magnitude, &raw, 4);
  }
  return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  const uint16_t sign = uint16_t(raw >> 16 & 0x8000);
  raw &= 0x7fffffff;
  if (raw > 0x7f800000)
    return {uint16_t(sign | 0x7e00)};
  if (raw >= 0x477ff000) // rounds to more than the largest half
    return {uint16_t(sign | 0x7c00)};
  if (raw < 0x38800000) { // subnormal: adding 2^23 units of the last place lets the FPU round
    float magnitude;
    std::memcpy(&magnitude, &raw, 4);
    magnitude += 0.5f;
    std::memcpy(&raw, &magnitude, 4);
    return {uint16_t(sign | (raw - 0x3f000000))};
  }
  raw += 0xfff + (raw >> 13 & 1);
  return {uint16_t(sign | (raw - 0x38000000) >> 13)};
}
