// magnitudes_within on the CPU: counts of the differences of models to a base, and those of a
// range.
#include <cstring>
#include <tuple>

#include "merge.h"

namespace petkit {
namespace {

constexpr int64_t within_grain = 16; // blocks worth a thread's while

// What was found in a block of a model. Blocks come together in their order, whatever the threads.
struct Found {
  Places places;
  std::vector<float> values;
};

Tensor counts_of(const std::vector<Found>& found, const ModelRows& rows, const Tensor& models) {
  const std::array<int64_t, 2> shape{rows.models(), 4};
  const Tensor counts = torch::stable::new_empty(models, shape, ScalarType::Long);
  int64_t* row = static_cast<int64_t*>(counts.mutable_data_ptr());
  const size_t blocks = found.size() / size_t(rows.models());
  for (int64_t model = 0; model < rows.models(); ++model, row += 4) {
    std::fill(row, row + 4, 0);
    for (size_t at = size_t(model) * blocks; at < size_t(model + 1) * blocks; ++at) {
      const Places& places = found[at].places;
      row[0] += places.below;
      row[1] += places.at_low;
      row[2] += places.between;
      row[3] += places.at_high;
    }
  }
  return counts;
}

Tensor values_of(const std::vector<Found>& found, const Tensor& models) {
  size_t total = 0;
  for (const Found& one : found)
    total += one.values.size();
  const std::array<int64_t, 1> shape{int64_t(total)};
  const Tensor values = torch::stable::new_empty(models, shape, ScalarType::Float);
  float* next = static_cast<float*>(values.mutable_data_ptr());
  for (const Found& one : found)
    next = std::copy(one.values.begin(), one.values.end(), next);
  return values;
}

std::tuple<Tensor, Tensor> magnitudes_within(const Tensor base_, const Tensor models,
                                             const Tensor low_, const Tensor high_) {
  const ModelRows rows(models);
  const Tensor base = base_in_order(base_, models);
  const std::vector<float> low = rounded(low_, "low", rows.models());
  const std::vector<float> high = rounded(high_, "high", rows.models());
  const char* origin = static_cast<const char*>(base.const_data_ptr());
  const DType dtype = rows.dtype();
  const int64_t count = rows.count(), blocks = (count + within_block - 1) / within_block;
  std::vector<Found> found(size_t(rows.models() * blocks));
  torch::stable::parallel_for(
      0, rows.models() * blocks, within_grain, [&](int64_t begin, int64_t end) {
        std::vector<float> values(size_t{within_values});
        for (int64_t at = begin; at < end; ++at) {
          const int64_t model = at / blocks, first = at % blocks * within_block;
          const int64_t number = std::min(within_block, count - first);
          const int64_t offset = first * item_size(dtype);
          Found& one = found[size_t(at)];
          one.places =
              kernels().merge.within(origin + offset, rows.row(model) + offset, dtype, number,
                                     low[size_t(model)], high[size_t(model)], values.data());
          one.values.assign(values.begin(), values.begin() + one.places.between);
        }
      });
  return {counts_of(found, rows, models), values_of(found, models)};
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("magnitudes_within", TORCH_BOX(&petkit::magnitudes_within));
}
