// Device memory that a launcher needs only until the stream has run what it launched.
#pragma once

#include <cstdint>

namespace petkit::cuda {

class Scratch {
public:
  virtual ~Scratch() = default;

  template <class T> T* take(int64_t count, const char* name) {
    return static_cast<T*>(bytes(count * int64_t(sizeof(T)), name));
  }

protected:
  // Aligned for every number; `name` serves whoever looks for writes outside it.
  virtual void* bytes(int64_t count, const char* name) = 0;
};

} // namespace petkit::cuda
