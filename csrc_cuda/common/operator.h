// What every CUDA operator does before its launch: checks with values, the device guard, the
// current stream, and the choice of a kernel by element type and bits. The only header here that
// includes torch (its stable ABI).
#pragma once

// torch's C shim declares the CUDA stream only under this name.
#ifndef USE_CUDA
#define USE_CUDA
#endif

#include <array>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "petkit/packed.h"

namespace petkit::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d)
    text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + ")";
}

inline void check_dimensions(const Tensor& tensor, const char* name, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions,
                  " dimensions, got shape ", shape_of(tensor));
}

inline void check_shape(const Tensor& tensor, const char* name,
                        std::initializer_list<int64_t> shape) {
  bool equal = tensor.dim() == int64_t(shape.size());
  std::string expected;
  int64_t d = 0;
  for (const int64_t size : shape) {
    equal = equal && tensor.size(d) == size;
    expected += (d++ ? ", " : "") + std::to_string(size);
  }
  STD_TORCH_CHECK(equal, name, " must have shape (", expected, "), got ", shape_of(tensor));
}

inline void check_type(const Tensor& tensor, const char* name, ScalarType type,
                       const char* type_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be ", type_name,
                  ", got another type; convert it first");
}
inline void check_float32(const Tensor& tensor, const char* name) {
  check_type(tensor, name, ScalarType::Float, "float32");
}
inline void check_packed(const Tensor& packed, const char* name, int64_t columns, int64_t bits) {
  check_type(packed, name, ScalarType::Byte, "uint8");
  const int64_t bytes = row_bytes(columns, int(bits));
  STD_TORCH_CHECK(packed.dim() > 0 && packed.size(packed.dim() - 1) == bytes, name, " must hold ",
                  bytes, " bytes a row for ", columns, " codes of ", bits, " bits, got shape ",
                  shape_of(packed));
}
inline void check_scalars(const Tensor& shift, const Tensor& scale) {
  check_float32(shift, "shift");
  check_float32(scale, "scale");
  check_shape(shift, "shift", {});
  check_shape(scale, "scale", {});
}
inline void check_bits(int64_t bits) {
  STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 4 || bits == 8,
                  "bits must be 1, 2, 4 or 8, got ", bits);
}
inline void check_levels(const Tensor& levels_of_codes, int64_t bits) {
  check_bits(bits);
  check_float32(levels_of_codes, "levels");
  check_shape(levels_of_codes, "levels", {int64_t(levels(int(bits)))});
}
inline void check_weight(const Tensor& weight) {
  check_dimensions(weight, "weight", 2);
  STD_TORCH_CHECK(weight.numel() >= 2,
                  "weight must hold at least 2 values for a standard deviation, got shape ",
                  shape_of(weight));
}

#ifdef __CUDACC__
// Makes the device of `first` current while it lives; refuses tensors that lie elsewhere.
class OnDevice {
public:
  OnDevice(const Tensor& first, std::initializer_list<std::pair<const char*, const Tensor*>> others)
      : guard_(first.get_device_index()) {
    for (const auto& [name, tensor] : others)
      STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == first.get_device_index(),
                      name, " must lie on CUDA device ", first.get_device_index(),
                      " like the first argument");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(first.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};
#else
// The emulator's tensors lie in host memory, and its one stream is always finished.
class OnDevice {
public:
  OnDevice(const Tensor&, std::initializer_list<std::pair<const char*, const Tensor*>>) {}
  cudaStream_t stream() const { return nullptr; }
};
#endif

template <class T> const T* input(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T> T* output(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <size_t N>
Tensor new_tensor(const Tensor& like, const std::array<int64_t, N>& shape, ScalarType type) {
  return torch::stable::new_empty(like, {shape.data(), shape.size()}, type);
}
inline Tensor new_scalar(const Tensor& like) {
  return new_tensor(like, std::array<int64_t, 0>{}, ScalarType::Float);
}

template <class Call> void dispatch_bits(int64_t bits, Call call) {
  switch (bits) {
  case 1:
    return call(std::integral_constant<int, 1>{});
  case 2:
    return call(std::integral_constant<int, 2>{});
  case 4:
    return call(std::integral_constant<int, 4>{});
  default:
    return call(std::integral_constant<int, 8>{});
  }
}

template <class T> struct Element {
  using type = T;
};

// Calls with Element<T>. `name` is the argument whose type it is.
template <class Call> void dispatch_type(ScalarType type, const char* name, Call call) {
  switch (type) {
  case ScalarType::Float:
    return call(Element<float>{});
  case ScalarType::BFloat16:
    return call(Element<__nv_bfloat16>{});
  case ScalarType::Half:
    return call(Element<__half>{});
  default:
    STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16 on CUDA; convert it first");
  }
}

// Calls with Element<T> and the number of bits as a constant.
template <class Call> void dispatch(ScalarType type, const char* name, int64_t bits, Call call) {
  dispatch_type(type, name, [&](auto element) {
    dispatch_bits(bits, [&](auto constant_bits) { call(element, constant_bits); });
  });
}

} // namespace petkit::cuda
