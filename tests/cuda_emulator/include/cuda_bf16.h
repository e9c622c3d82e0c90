// Stands in for CUDA's header: the upper half of a float, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t raw = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &raw, 4);
  return result;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t raw;
  std::memcpy(&raw, &value, 4);
  if ((raw & 0x7fffffff) > 0x7f800000)
    return {0x7fff};
  return {uint16_t((raw + 0x7fff + (raw >> 16 & 1)) >> 16)};
}
