// finite_rows on the CPU: whether rows hold only finite numbers.
#include <atomic>

#include "merge.h"

namespace petkit {
namespace {

Tensor finite_rows(const Tensor models) {
  const ModelRows rows(models);
  const int64_t count = rows.count(), blocks = (count + block_size - 1) / block_size;
  const Tensor result =
      torch::stable::new_empty(models, std::array<int64_t, 1>{rows.models()}, ScalarType::Bool);
  std::vector<std::atomic<bool>> broken(size_t(rows.models()));
  torch::stable::parallel_for(0, rows.models() * blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t model = at / blocks, first = at % blocks * block_size;
      std::atomic<bool>& found = broken[size_t(model)];
      if (found.load(std::memory_order_relaxed))
        continue;
      const char* block = rows.row(model) + first * item_size(rows.dtype());
      if (!kernels().merge.finite(block, rows.dtype(), std::min(block_size, count - first)))
        found.store(true, std::memory_order_relaxed);
    }
  });
  bool* finite = static_cast<bool*>(result.mutable_data_ptr());
  for (size_t m = 0; m < broken.size(); ++m)
    finite[m] = !broken[m];
  return result;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("finite_rows", TORCH_BOX(&petkit::finite_rows));
}
