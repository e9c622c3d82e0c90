// The choice of kernels.
#include <cstring>

#include "check.h"

using namespace petkit;

int main() {
  CHECK(available_kernels()[0] == &kernels(), "the first is in use");
  const Kernels* last = nullptr;
  with_each_kernels([&](const Kernels& k) {
    CHECK(use_kernels(k.name) && &kernels() == &k, "%s", k.name);
    for (int i = 0; i < 4; ++i)
      CHECK(k.encode[i] && k.decode[i] && k.round[i] && k.straight_sums[i] && k.linear[i] &&
                k.linear_backward[i] && k.bank[i],
            "%s has every kernel", k.name);
    std::printf("kernels: %s\n", k.name);
    last = &k;
  });
  CHECK(last && std::strcmp(last->name, "scalar") == 0, "the portable kernels come last");
  CHECK(!use_kernels("altivec") && &kernels() == last, "an unknown name changes nothing");
  return finish("dispatch");
}
