// Chooses the kernels at run time: by what the compiler could build and what this processor has.
#include <cstring>

#include "petkit/kernels.h"

namespace petkit {

Kernels make_scalar_kernels();
#if defined(__x86_64__)
Kernels make_avx2_kernels();
Kernels make_avx512_kernels();
#elif defined(__aarch64__)
Kernels make_neon_kernels();
#endif

namespace {

struct Choices {
  Kernels built[3];
  const Kernels* available[4] = {};
  const Kernels* current;

  Choices() {
    int count = 0;
    const auto offer = [&](Kernels kernels) {
      built[count] = kernels;
      available[count] = &built[count];
      ++count;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx512)
      offer(make_avx512_kernels());
    if (avx2)
      offer(make_avx2_kernels());
#elif defined(__aarch64__)
    offer(make_neon_kernels());
#endif
    offer(make_scalar_kernels());
    current = available[0];
  }
};

Choices& choices() {
  static Choices instance;
  return instance;
}

} // namespace

const Kernels& kernels() { return *choices().current; }

const Kernels* const* available_kernels() { return choices().available; }

bool use_kernels(const char* name) {
  for (const Kernels* const* k = choices().available; *k; ++k) {
    if (std::strcmp((*k)->name, name) == 0) {
      choices().current = *k;
      return true;
    }
  }
  return false;
}

} // namespace petkit
