// Device memory of the emulator: a guard page right behind each buffer turns an access past its end
// into an error, bytes before it and in the last 16-byte unit are checked after the launch.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

class Buffer {
public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    // As torch's allocator does, a buffer starts at a multiple of 16 bytes.
    const size_t rounded = (bytes + 15) / 16 * 16;
    inside_ = (rounded + front_bytes + page - 1) / page * page;
    mapped_ = inside_ + page;
    void* mapped =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
      throw std::runtime_error("cuda_emulator: no memory for a buffer of " + std::to_string(bytes) +
                               " bytes");
    base_ = static_cast<uint8_t*>(mapped);
    mprotect(base_ + inside_, page, PROT_NONE);
    std::memset(base_, 0xFF, inside_);
    data_ = base_ + inside_ - rounded;
  }
  Buffer(const void* source, size_t bytes) : Buffer(bytes) {
    if (bytes)
      std::memcpy(data_, source, bytes);
  }
  ~Buffer() { munmap(base_, mapped_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <class T> T* as() const { return reinterpret_cast<T*>(data_); }

  void check_margins(const std::string& name) const {
    for (const uint8_t* at = base_; at < base_ + inside_; ++at)
      if ((at < data_ || at >= data_ + bytes_) && *at != 0xFF)
        throw std::runtime_error("cuda_emulator: a kernel wrote outside the buffer '" + name + "'");
  }

private:
  static constexpr size_t front_bytes = 64;
  uint8_t *base_ = nullptr, *data_ = nullptr;
  size_t bytes_, inside_ = 0, mapped_ = 0;
};

} // namespace emulator
