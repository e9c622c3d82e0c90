// A test is a function; a failed check prints where and what, and the program goes on and exits
// with 1.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "petkit/kernels.h"

inline int& failures() {
  static int count = 0;
  return count;
}

// `detail` is a printf format with its values; it says which case failed.
#define CHECK(condition, ...)                                                                      \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      std::printf("%s:%d: %s is false: ", __FILE__, __LINE__, #condition);                         \
      std::printf(__VA_ARGS__);                                                                    \
      std::printf("\n");                                                                           \
      ++failures();                                                                                \
    }                                                                                              \
  } while (false)

inline int finish(const char* name) {
  std::printf("%s: %d failures\n", name, failures());
  return failures() == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

// Uniform numbers in [-1, 1), the same on every machine.
class Random {
public:
  explicit Random(unsigned seed) : state(seed * 2654435761u + 1) {}
  unsigned next() {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
  }
  float uniform() { return float(next()) / float(1 << 23) - 1.0f; }
  std::vector<float> floats(size_t count) {
    std::vector<float> values(count);
    for (float& value : values)
      value = uniform();
    return values;
  }
  std::vector<uint8_t> bytes(size_t count) {
    std::vector<uint8_t> values(count);
    for (uint8_t& value : values)
      value = uint8_t(next());
    return values;
  }

private:
  unsigned state;
};

// Runs a test once for every set of kernels of this machine.
template <class F> void with_each_kernels(const F& test) {
  for (const petkit::Kernels* const* k = petkit::available_kernels(); *k; ++k)
    test(**k);
}
