// merge_linear on the CPU: the weighted sum of slices of models.
#include "merge.h"

namespace petkit {
namespace {

Tensor merge_linear(const Tensor models, const Tensor weights, ScalarType dtype) {
  const ModelRows rows(models);
  const std::vector<float> factors = rounded(weights, "weights", rows.models());
  std::vector<const char*> places;
  for (int64_t m = 0; m < rows.models(); ++m)
    places.push_back(rows.row(m));
  const LinearMerge merge{places.data(), factors.data(), rows.models(), rows.dtype()};
  const Tensor result = new_slice(models, dtype);
  const DType stored = dtype_of(result, "dtype");
  void* out = result.mutable_data_ptr();
  over_blocks(rows.count(), [&](int64_t, int64_t first, int64_t count) {
    kernels().merge.linear(merge, first, count, out, stored);
  });
  return result;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("merge_linear", TORCH_BOX(&petkit::merge_linear));
}
