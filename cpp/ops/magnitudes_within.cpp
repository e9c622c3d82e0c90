// magnitudes_within on the CPU: counts of the differences of models to a base, and those of a
// range.
#include <algorithm>
#include <tuple>

#include "merge.h"

namespace petkit {
namespace {

constexpr int64_t within_grain = 16; // blocks worth a thread's while

// What was found in a block of a model.
struct Found {
  Places places;
  std::vector<float> values;
};

// Of all blocks, the models of one block side by side so that its base is read once.
class Blocks {
public:
  Blocks(const ModelRows& rows, const Tensor& base)
      : rows_(rows), base_(static_cast<const char*>(base.const_data_ptr())),
        found_(size_t(rows.models() * ((rows.count() + within_block - 1) / within_block))) {}

  int64_t size() const { return int64_t(found_.size()); }

  void find(int64_t at, const std::vector<float>& low, const std::vector<float>& high,
            float* values) {
    const int64_t first = at / rows_.models() * within_block, model = at % rows_.models();
    const int64_t offset = first * item_size(rows_.dtype());
    Found& one = found_[size_t(at)];
    one.places = kernels().merge.within(base_ + offset, rows_.row(model) + offset, rows_.dtype(),
                                        std::min(within_block, rows_.count() - first),
                                        low[size_t(model)], high[size_t(model)], values);
    one.values.assign(values, values + one.places.between);
  }

  Tensor counts(const Tensor& models) const {
    const std::array<int64_t, 2> shape{rows_.models(), 4};
    const Tensor result = torch::stable::new_empty(models, shape, ScalarType::Long);
    int64_t* row = static_cast<int64_t*>(result.mutable_data_ptr());
    std::fill(row, row + shape[0] * shape[1], 0);
    for_each([&](int64_t model, const Found& one) {
      int64_t* sums = row + model * shape[1];
      sums[0] += one.places.below;
      sums[1] += one.places.at_low;
      sums[2] += one.places.between;
      sums[3] += one.places.at_high;
    });
    return result;
  }

  Tensor values(const Tensor& models) const {
    std::array<int64_t, 1> shape{0};
    for_each([&](int64_t, const Found& one) { shape[0] += one.places.between; });
    const Tensor result = torch::stable::new_empty(models, shape, ScalarType::Float);
    float* next = static_cast<float*>(result.mutable_data_ptr());
    for_each([&](int64_t, const Found& one) {
      next = std::copy(one.values.begin(), one.values.end(), next);
    });
    return result;
  }

private:
  // By model, then by place, whatever the threads.
  template <class Use> void for_each(const Use& use) const {
    for (int64_t model = 0; model < rows_.models(); ++model)
      for (int64_t at = model; at < size(); at += rows_.models())
        use(model, found_[size_t(at)]);
  }

  const ModelRows& rows_;
  const char* base_;
  std::vector<Found> found_;
};

std::tuple<Tensor, Tensor> magnitudes_within(const Tensor base_, const Tensor models,
                                             const Tensor low_, const Tensor high_) {
  const ModelRows rows(models);
  const Tensor base = base_in_order(base_, models);
  const std::vector<float> low = rounded(low_, "low", rows.models());
  const std::vector<float> high = rounded(high_, "high", rows.models());
  Blocks blocks(rows, base);
  torch::stable::parallel_for(0, blocks.size(), within_grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(size_t{within_values});
    for (int64_t at = begin; at < end; ++at)
      blocks.find(at, low, high, values.data());
  });
  return {blocks.counts(models), blocks.values(models)};
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("magnitudes_within", TORCH_BOX(&petkit::magnitudes_within));
}
