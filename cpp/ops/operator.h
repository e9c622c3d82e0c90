// What the operators share: argument checks with values, dtypes, and loops over blocks of weights.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <vector>

#include "petkit/kernels.h"
#include "petkit/packed.h"
#include "petkit/quantizer.h"

namespace petkit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr double ln2 = 0.6931471805599453;
inline constexpr double log2_e = 1.4426950408889634;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
  case ScalarType::Float:
    return DType::float32;
  case ScalarType::BFloat16:
    return DType::bfloat16;
  case ScalarType::Half:
    return DType::float16;
  default:
    STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16, got ",
                    torch::headeronly::toString(tensor.scalar_type()));
    return DType::float32;
  }
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType expected) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, name, " must be ",
                  torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_bits(int64_t bits, const Tensor& codebook) {
  STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 4 || bits == 8,
                  "bits must be 1, 2, 4 or 8, got ", bits);
  check_dtype(codebook, "levels", ScalarType::Float);
  STD_TORCH_CHECK(codebook.numel() == levels(int(bits)), "levels must hold ", levels(int(bits)),
                  " values for ", bits, " bits, got ", codebook.numel());
}

inline void check_rank(const Tensor& tensor, const char* name, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, " must have ", rank, " dimensions, got ",
                  tensor.dim());
}

// Packed codes of rank 2 or 3 whose last dimension holds rows of `columns` codes.
inline void check_packed(const Tensor& packed, const char* name, int64_t rank, int64_t columns,
                         int64_t bits) {
  check_dtype(packed, name, ScalarType::Byte);
  check_rank(packed, name, rank);
  const int64_t expected = row_bytes(columns, int(bits));
  STD_TORCH_CHECK(packed.size(rank - 1) == expected, name, " must have rows of ", expected,
                  " bytes for ", columns, " codes of ", bits, " bits, got ", packed.size(rank - 1));
}

inline float scalar_of(const Tensor& tensor, const char* name) {
  check_dtype(tensor, name, ScalarType::Float);
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must be a scalar, got ", tensor.numel(), " values");
  return *static_cast<const float*>(tensor.const_data_ptr());
}

inline Tensor new_scalar(const Tensor& like, float value) {
  Tensor scalar = torch::stable::new_empty(like, std::array<int64_t, 0>{}, ScalarType::Float);
  *static_cast<float*>(scalar.mutable_data_ptr()) = value;
  return scalar;
}

inline const float* floats(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

inline const uint8_t* bytes(const Tensor& tensor) {
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

// The weight that each code stands for.
inline std::array<float, 256> values_of(const Tensor& codebook, float shift, float scale) {
  std::array<float, 256> values{};
  for (int64_t i = 0; i < codebook.numel(); ++i)
    values[i] = value(shift, scale, floats(codebook)[i]);
  return values;
}

// For each code the largest weight that still gets the code below it; -infinity for code 0.
inline std::array<float, 256> bounds_of(const Tensor& codebook, float shift, float scale) {
  std::array<float, 256> bounds{};
  bounds[0] = -INFINITY;
  for (int64_t i = 1; i < codebook.numel(); ++i)
    bounds[i] = cut(shift, scale, floats(codebook)[i - 1], floats(codebook)[i]);
  return bounds;
}

// A new result of more than a few megabytes lies on memory that the system maps on first touch. In
// pages of 2 MiB that costs a fraction of the writing itself; in pages of 4 KiB, several times as
// much.
inline void prefer_huge_pages(const Tensor& fresh, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t first = (start + page - 1) / page * page,
                  last = (start + uintptr_t(bytes)) / page * page;
  // Advice only: where huge pages are off, nothing changes.
  if (last >= first + 2 * page)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

constexpr int64_t block_size = 4096;

// Weights of any dtype as blocks of float32: those of float32 in place, others converted into a
// buffer.
class Source {
public:
  Source(const Tensor& tensor, const char* name)
      : dtype(dtype_of(tensor, name)), data(static_cast<const char*>(tensor.const_data_ptr())) {}

  const float* read(int64_t offset, int64_t count, float* buffer) const {
    const char* place = data + offset * item_size(dtype);
    if (dtype == DType::float32)
      return reinterpret_cast<const float*>(place);
    kernels().to_float(place, dtype, buffer, count);
    return buffer;
  }

  const DType dtype;

private:
  const char* data;
};

// Likewise for results: `place` gives where to compute a block, `write` puts it where it belongs.
class Sink {
public:
  explicit Sink(const Tensor& fresh)
      : dtype(dtype_of(fresh, "result")), data(static_cast<char*>(fresh.mutable_data_ptr())) {
    prefer_huge_pages(fresh, fresh.numel() * item_size(dtype));
  }

  float* place(int64_t offset, float* buffer) const {
    return dtype == DType::float32 ? reinterpret_cast<float*>(data) + offset : buffer;
  }
  void write(int64_t offset, int64_t count, const float* buffer) const {
    if (dtype != DType::float32)
      kernels().from_float(buffer, dtype, data + offset * item_size(dtype), count);
  }

  const DType dtype;

private:
  char* data;
};

// Calls f(index, offset, count) for blocks of a span; forks once, and not at all for a small span.
template <class F> void over_blocks(int64_t size, const F& f) {
  const int64_t blocks = (size + block_size - 1) / block_size;
  torch::stable::parallel_for(0, blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      f(i, i * block_size, std::min(block_size, size - i * block_size));
  });
}

// Calls f(offset of the weights, offset of the bytes, count) for blocks of a matrix and its packed
// codes. Rows that end on a byte follow each other without a gap, so they count as one long row.
template <class F> void over_packed_blocks(int64_t rows, int64_t columns, int bits, const F& f) {
  if (columns * bits % 8 == 0) {
    columns *= rows;
    rows = 1;
  }
  if (columns == 0)
    return;
  const int64_t stride = row_bytes(columns, bits);
  const int64_t blocks = (columns + block_size - 1) / block_size;
  const int64_t grain = 16 * block_size / std::min(columns, block_size);
  torch::stable::parallel_for(0, rows * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, first = i % blocks * block_size;
      f(row * columns + first, row * stride + first * bits / 8,
        std::min(block_size, columns - first));
    }
  });
}

struct Moments {
  float shift, scale;
};

// Mean and unbiased standard deviation; the same whatever the number of threads.
inline Moments moments_of(const Tensor& weight) {
  const int64_t count = weight.numel();
  STD_TORCH_CHECK(count >= 2, "weight must hold at least 2 values for a standard deviation, got ",
                  count);
  const Source source(weight, "weight");
  float first;
  const float pivot = *source.read(0, 1, &first);
  std::vector<Sums> parts((count + block_size - 1) / block_size);
  over_blocks(count, [&](int64_t index, int64_t offset, int64_t size) {
    float buffer[block_size];
    parts[index] = kernels().moments(source.read(offset, size, buffer), size, pivot);
  });
  double total = 0, squares = 0;
  for (const Sums& part : parts)
    total += part.first, squares += part.second;
  const double variance =
      std::max(0.0, squares - total * total / double(count)) / double(count - 1);
  // max() would turn nan into 0, but a weight that is not finite has to show.
  const double finite = total - total;
  return {float(double(pivot) + total / double(count)), float(std::sqrt(variance) + finite)};
}

} // namespace petkit
