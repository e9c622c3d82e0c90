// The CRF kernels for one instruction set of float32 lanes: rows of any dtype, widened.
#pragma once

#include "exponential_impl.h"
#include "vector_impl.h"

namespace petkit {
namespace {

// A weight of less than this is not trusted, since what adds to it may have vanished below
// least_exponent.
constexpr float crf_least_sum = 1e-28f;
// exp of no more than this times a weight of at least crf_least_sum is no more than 1.
constexpr float crf_largest_exponent = 60;

inline void read_row(const char* row, DType dtype, float* out, int64_t count) {
  to_float(row, dtype, out, count);
}
inline void write_row(const float* row, DType dtype, char* out, int64_t count) {
  from_float(row, dtype, out, count);
}
inline float read_one(const char* row, DType dtype, int64_t i) {
  float value;
  to_float(row + i * item_size(dtype), dtype, &value, 1);
  return value;
}

} // namespace
} // namespace petkit

#include "beam_crf_impl.h"
