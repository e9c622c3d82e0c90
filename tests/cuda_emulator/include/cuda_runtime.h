// Stands in for CUDA's header when the emulator compiles device code: keywords, built-in variables,
// vector types, barriers, warp collectives, atomics and streams, as far as petkit's kernels use
// them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (emulator::machine.current->index)
#define blockIdx (emulator::machine.block_index)
#define blockDim (emulator::machine.block_size)
#define gridDim (emulator::machine.grid_size)

#define __syncthreads() emulator::barrier(__FILE__, __LINE__)

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncwarp(unsigned mask = ~0u) { emulator::collect(mask, 0); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
  return emulator::shuffle(mask, value, unsigned(lane));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulator::shuffle(mask, value, emulator::machine.current->linear ^ unsigned(lanes));
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = emulator::machine.current->linear % 32;
  return emulator::shuffle(mask, value, lane + delta < 32 ? lane + delta : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = emulator::machine.current->linear % 32;
  return emulator::shuffle(mask, value, lane >= delta ? lane - delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* collected = emulator::collect(mask, int(predicate));
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    ballot |= unsigned((mask >> lane & 1) && collected[lane] != 0) << lane;
  return ballot;
}

// A fiber is never interrupted between two statements, so plain reads and writes are atomic here.
template <class T> T atomicExch(T* at, T value) { return std::exchange(*at, value); }
template <class T> T atomicAdd(T* at, T value) { return std::exchange(*at, T(*at + value)); }
template <class T> T atomicMax(T* at, T value) {
  return std::exchange(*at, *at < value ? value : *at);
}
template <class T> T atomicMin(T* at, T value) {
  return std::exchange(*at, value < *at ? value : *at);
}
template <class T> T atomicCAS(T* at, T expected, T value) {
  return std::exchange(*at, *at == expected ? value : *at);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }
template <class T> T __ldg(const T* at) { return *at; }
