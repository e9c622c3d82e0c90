// Which kernel computes a product with a packed matrix, by the number of rows.
#pragma once

#include "linear_few_rows.cuh"
#include "linear_many_rows.cuh"
#include "linear_tensor_cores.cuh"

namespace petkit::cuda {

// Below this the bits are decoded once per four rows, and that costs less than a mostly idle 64-row
// tile.
constexpr int64_t few_rows_limit = 32;

// Tensor cores take 16-bit operands; float ones would lose digits in them.
template <class T, int BITS, bool TRANSPOSED, class... Args> void tiled(Args... args) {
  if constexpr (std::is_same_v<T, float>)
    many_rows<T, BITS, TRANSPOSED>(args...);
  else
    tensor_cores<T, BITS, TRANSPOSED>(args...);
}

// x (rows, in_features), packed (out_features, row_bytes(in_features)) -> y (rows, out_features).
template <class T, int BITS>
void lowbit_linear(const T* x, const uint8_t* packed, const float* shift, const float* scale,
                   const float* codebook, T* y, int64_t rows, int64_t in_features,
                   int64_t out_features, cudaStream_t stream) {
  if (rows == 0 || out_features == 0)
    return;
  if (rows > few_rows_limit)
    tiled<T, BITS, false>(x, packed, shift, scale, codebook, y, rows, in_features, out_features,
                          stream);
  else if (rows > 1)
    few_rows<T, BITS, 4, 4>(x, packed, shift, scale, codebook, y, rows, in_features, out_features,
                            stream);
  else if (row_bytes(in_features, BITS) < 16 * warp_threads)
    // A row too short to give every lane 16 bytes.
    few_rows<T, BITS, 4, 1>(x, packed, shift, scale, codebook, y, rows, in_features, out_features,
                            stream);
  else
    few_rows<T, BITS, 16, 1>(x, packed, shift, scale, codebook, y, rows, in_features, out_features,
                             stream);
}

// grad (rows, out_features) -> grad_x (rows, in_features).
template <class T, int BITS>
void lowbit_linear_backward(const T* grad, const uint8_t* packed, const float* shift,
                            const float* scale, const float* codebook, T* grad_x, int64_t rows,
                            int64_t in_features, int64_t out_features, cudaStream_t stream) {
  if (rows > 0 && in_features > 0)
    tiled<T, BITS, true>(grad, packed, shift, scale, codebook, grad_x, rows, out_features,
                         in_features, stream);
}

} // namespace petkit::cuda
