// The one way to launch a kernel, so that the same sources run on a device and in the CPU emulator.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

namespace petkit::cuda {

constexpr int warp_threads = 32;

constexpr int64_t ceil_div(int64_t amount, int64_t unit) { return (amount + unit - 1) / unit; }

// Blocks for a grid-stride loop: enough to fill the largest device several times over, never too
// many to launch.
inline unsigned stride_blocks(int64_t items, int threads) {
  return unsigned(std::min<int64_t>(ceil_div(items, threads), 16384));
}

inline unsigned grid_extent(int64_t blocks, int64_t limit, const char* axis) {
  if (blocks > limit)
    throw std::runtime_error("a CUDA grid holds at most " + std::to_string(limit) + " blocks in " +
                             axis + ", got " + std::to_string(blocks) + "; split the input");
  return unsigned(blocks);
}
inline unsigned grid_x(int64_t blocks) { return grid_extent(blocks, 0x7fffffff, "x"); }
inline unsigned grid_y(int64_t blocks) { return grid_extent(blocks, 65535, "y"); }

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("launching ") + kernel +
                             " failed: " + cudaGetErrorString(error));
}

} // namespace petkit::cuda

// `kernel` is put in parentheses by the caller when it has template arguments. PETKIT_SHARED
// declares a block's array, PETKIT_DYNAMIC_SHARED the part whose size the launch gives.
#ifdef __CUDACC__
#define PETKIT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                              \
  do {                                                                                             \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                          \
    ::petkit::cuda::check_launch(#kernel);                                                         \
  } while (false)
#define PETKIT_SHARED(type, name, extent) __shared__ __align__(32) type name[extent]
#define PETKIT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) float name[]
#else
#define PETKIT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                              \
  ((void)(stream), emulator::launch((kernel), (grid), (block), (shared_bytes), ##__VA_ARGS__))
#define PETKIT_SHARED(type, name, extent)                                                          \
  static emulator::Shared<type[extent]> name##_storage;                                            \
  auto& name = name##_storage.enter()
#define PETKIT_DYNAMIC_SHARED(name)                                                                \
  float* name = reinterpret_cast<float*>(emulator::machine.dynamic_shared.data())
#endif
