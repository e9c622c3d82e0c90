// Element types (fp32, bf16, fp16; arithmetic is always fp32) and groups of eight elements, the
// unit in which petkit's kernels read and write a row: eight codes fill one, two, four or eight
// whole bytes.
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace petkit::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T> __device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}

constexpr int group = 8;

// Whether every whole group of every row starts on a 16-byte boundary.
template <class T> inline bool groups_aligned(const T* base, int64_t columns, int64_t rows) {
  constexpr int64_t unit = 16 / int64_t(sizeof(T));
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && (rows <= 1 || columns % unit == 0);
}

// Reads `valid` (at most 8) elements; the others become zero.
template <class T>
__device__ inline void load_group(const T* at, int64_t valid, bool aligned,
                                  float (&values)[group]) {
  if (aligned && valid >= group) {
    constexpr int words = group * int(sizeof(T)) / 16;
    alignas(16) T raw[group];
#pragma unroll
    for (int i = 0; i < words; ++i)
      reinterpret_cast<uint4*>(raw)[i] = reinterpret_cast<const uint4*>(at)[i];
#pragma unroll
    for (int i = 0; i < group; ++i)
      values[i] = to_float(raw[i]);
  } else {
#pragma unroll
    for (int i = 0; i < group; ++i)
      values[i] = i < valid ? to_float(at[i]) : 0.f;
  }
}

// Writes the first `valid` (at most 8) values.
template <class T>
__device__ inline void store_group(T* at, int64_t valid, bool aligned,
                                   const float (&values)[group]) {
  if (aligned && valid >= group) {
    constexpr int words = group * int(sizeof(T)) / 16;
    alignas(16) T raw[group];
#pragma unroll
    for (int i = 0; i < group; ++i)
      raw[i] = from_float<T>(values[i]);
#pragma unroll
    for (int i = 0; i < words; ++i)
      reinterpret_cast<uint4*>(at)[i] = reinterpret_cast<const uint4*>(raw)[i];
  } else {
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (i < valid)
        at[i] = from_float<T>(values[i]);
  }
}

} // namespace petkit::cuda
