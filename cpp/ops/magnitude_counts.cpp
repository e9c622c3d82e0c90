// magnitude_counts on the CPU: histograms of the differences of models to a base.
#include <cstring>
#include <mutex>

#include "merge.h"

namespace petkit {
namespace {

constexpr int64_t all_upper = -1;
constexpr int64_t counted_block = 1 << 16; // numbers that are counted in one go
constexpr int64_t counted_grain = 16;      // blocks worth a thread's while
constexpr int64_t most_blocks = 1 << 15;   // so that 32 bits hold every count

std::vector<int64_t> prefixes_of(const Tensor& tensor, int64_t models) {
  const auto prefixes = numbers_of<int64_t>(tensor, "prefix", ScalarType::Long, models);
  for (const int64_t prefix : prefixes)
    STD_TORCH_CHECK(prefix >= all_upper && prefix < upper_bins, "prefix must lie between -1 and ",
                    upper_bins - 1, ", got ", prefix);
  return prefixes;
}

// Counts of one model in a thread's own table, 32 bits wide, until they are added to the result.
class Counts {
public:
  Counts(int64_t* totals, std::mutex& guard)
      : totals_(totals), guard_(guard), bins_(size_t(magnitude_bins)) {}

  void add(const char* base, const char* model, DType dtype, int64_t count, int64_t prefix) {
    if (prefix == all_upper)
      kernels().merge.upper_halves(base, model, dtype, count, bins_.data());
    else
      kernels().merge.lower_halves(base, model, dtype, count, uint32_t(prefix), bins_.data());
  }
  void flush(int64_t model, int64_t prefix) {
    const int64_t width = prefix == all_upper ? upper_bins : lower_bins;
    // Sums of whole numbers: which thread comes first changes nothing.
    const std::lock_guard<std::mutex> lock(guard_);
    for (int64_t table = 0; table < magnitude_bins; table += width)
      for (int64_t bin = 0; bin < width; ++bin)
        totals_[model * lower_bins + bin] += bins_[size_t(table + bin)];
    std::fill(bins_.begin(), bins_.end(), 0);
  }

private:
  int64_t* totals_;
  std::mutex& guard_;
  std::vector<uint32_t> bins_;
};

Tensor magnitude_counts(const Tensor base_, const Tensor models, const Tensor prefix) {
  const ModelRows rows(models);
  const Tensor base = base_in_order(base_, models);
  const std::vector<int64_t> prefixes = prefixes_of(prefix, rows.models());
  const std::array<int64_t, 2> shape{rows.models(), lower_bins};
  const Tensor result = torch::stable::new_empty(models, shape, ScalarType::Long);
  int64_t* totals = static_cast<int64_t*>(result.mutable_data_ptr());
  std::memset(totals, 0, size_t(shape[0] * shape[1]) * sizeof(int64_t));
  const char* origin = static_cast<const char*>(base.const_data_ptr());
  const DType dtype = rows.dtype();
  const int64_t count = rows.count(), blocks = (count + counted_block - 1) / counted_block;
  std::mutex guard;
  // Model after model, so that each thread keeps to one or a few and flushes as often.
  torch::stable::parallel_for(
      0, rows.models() * blocks, counted_grain, [&](int64_t begin, int64_t end) {
        Counts counts(totals, guard);
        for (int64_t at = begin; at < end;) {
          const int64_t model = at / blocks, block = at % blocks;
          const int64_t next = std::min({end, (model + 1) * blocks, at + most_blocks});
          const int64_t first = block * counted_block;
          const int64_t last = std::min(count, first + (next - at) * counted_block);
          const int64_t offset = first * item_size(dtype);
          counts.add(origin + offset, rows.row(model) + offset, dtype, last - first,
                     prefixes[size_t(model)]);
          counts.flush(model, prefixes[size_t(model)]);
          at = next;
        }
      });
  return result;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("magnitude_counts", TORCH_BOX(&petkit::magnitude_counts));
}
