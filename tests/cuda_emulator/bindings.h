// What the emulator's face to Python is made of: types by their names, guarded buffers, arrays.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common/numeric.cuh"
#include "common/scratch.cuh"
#include "emulator/memory.h"

namespace py = pybind11;
namespace pc = petkit::cuda;
using emulator::Buffer;

namespace {

// Calls with a value of the element type and the number of bits as a constant.
template <class Call> void dispatch_type(const std::string& type, Call call) {
  if (type == "float32")
    call(float{});
  else if (type == "bfloat16")
    call(__nv_bfloat16{});
  else if (type == "float16")
    call(__half{});
  else
    throw std::runtime_error("the type must be float32, bfloat16 or float16, got " + type);
}

template <class Call> void dispatch_bits(int bits, Call call) {
  if (bits == 1)
    call(std::integral_constant<int, 1>{});
  else if (bits == 2)
    call(std::integral_constant<int, 2>{});
  else if (bits == 4)
    call(std::integral_constant<int, 4>{});
  else if (bits == 8)
    call(std::integral_constant<int, 8>{});
  else
    throw std::runtime_error("bits must be 1, 2, 4 or 8, got " + std::to_string(bits));
}

template <class Call> void dispatch(const std::string& type, int bits, Call call) {
  dispatch_type(type,
                [&](auto element) { dispatch_bits(bits, [&](auto b) { call(element, b); }); });
}

// The buffers of one call; `check` looks for writes outside them.
class Arena {
public:
  template <class T> const T* input(const py::array& array, const std::string& name) {
    if (!(array.flags() & py::array::c_style))
      throw std::runtime_error(name + " must be contiguous");
    if (array.itemsize() != py::ssize_t(sizeof(T)))
      throw std::runtime_error(name + " has items of another size than the kernel reads");
    return keep(name, std::make_unique<Buffer>(array.data(), size_t(array.nbytes())))
        ->template as<T>();
  }
  template <class T> T* scratch(int64_t count, const std::string& name) {
    return keep(name, std::make_unique<Buffer>(size_t(count) * sizeof(T)))->template as<T>();
  }
  void check() const {
    for (const auto& [name, buffer] : buffers_)
      buffer->check_margins(name);
  }

private:
  Buffer* keep(const std::string& name, std::unique_ptr<Buffer> buffer) {
    buffers_.emplace_back(name, std::move(buffer));
    return buffers_.back().second.get();
  }
  std::vector<std::pair<std::string, std::unique_ptr<Buffer>>> buffers_;
};

// Scratch in guarded buffers of the call's arena.
class ArenaScratch : public pc::Scratch {
public:
  explicit ArenaScratch(Arena& arena) : arena_(arena) {}

protected:
  void* bytes(int64_t count, const char* name) override {
    return arena_.scratch<uint8_t>(count, name);
  }

private:
  Arena& arena_;
};

// Copies a device buffer into a new array of the element type's bits.
template <class T> py::array download(const T* from, std::vector<py::ssize_t> shape) {
  using Item = std::conditional_t<std::is_arithmetic_v<T>, T, uint16_t>;
  static_assert(sizeof(Item) == sizeof(T));
  py::array_t<Item> array(shape);
  if (array.nbytes())
    std::memcpy(array.mutable_data(), from, size_t(array.nbytes()));
  return array;
}

} // namespace
