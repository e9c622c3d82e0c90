// Stands in for CUDA's header: 16 x 16 x 16 products with float sums. Which lane holds what is the
// device's secret, so code under test must not depend on it; here lane l holds eight elements of
// row l % 16, deliberately unlike the order in which petkit's kernels read a stored matrix.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

inline float widen(__half value) { return __half2float(value); }
inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// Elements of the operands that the lane's eight results need: a row of `a`, eight columns of `b`.
template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "the emulator knows 16 x 16 x 16 only");
  static constexpr int count = std::is_same_v<Use, matrix_a>   ? 16
                               : std::is_same_v<Use, matrix_b> ? 128
                                                               : 8;
  float held[count];
};

inline int own_row() { return int(emulator::machine.current->linear % 16); }
inline int own_column() { return int(emulator::machine.current->linear % 32 / 16 * 8); }

template <class T> void check_matrix(const T* at, unsigned pitch) {
  __syncwarp();
  if (reinterpret_cast<uintptr_t>(at) % 32 != 0 || pitch * sizeof(T) % 16 != 0)
    emulator::fail("a wmma matrix does not start at a multiple of 32 bytes or has rows that do not "
                   "lie at multiples of 16");
}

template <class Fragment> void fill_fragment(Fragment& to, float value) {
  for (float& each : to.held)
    each = value;
}

template <class T, class Layout>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, Layout>& to, const T* at, unsigned pitch) {
  check_matrix(at, pitch);
  for (int k = 0; k < 16; ++k)
    to.held[k] = widen(std::is_same_v<Layout, row_major> ? at[own_row() * pitch + k]
                                                         : at[k * pitch + own_row()]);
}

template <class T, class Layout>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, Layout>& to, const T* at, unsigned pitch) {
  check_matrix(at, pitch);
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 8; ++j)
      to.held[k * 8 + j] =
          widen(std::is_same_v<Layout, row_major> ? at[k * pitch + own_column() + j]
                                                  : at[(own_column() + j) * pitch + k]);
}

template <class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to,
              const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
  __syncwarp();
  for (int j = 0; j < 8; ++j) {
    float sum = c.held[j];
    for (int k = 0; k < 16; ++k)
      sum += a.held[k] * b.held[k * 8 + j];
    to.held[j] = sum;
  }
}

inline void store_matrix_sync(float* at, const fragment<accumulator, 16, 16, 16, float>& from,
                              unsigned pitch, layout_t layout) {
  check_matrix(at, pitch);
  for (int j = 0; j < 8; ++j)
    at[layout == mem_row_major ? own_row() * pitch + own_column() + j
                               : (own_column() + j) * pitch + own_row()] = from.held[j];
}

} // namespace nvcuda::wmma
