// merge_deltas on the CPU: a base and what models differ from it, in one pass.
#include <cmath>
#include <string>

#include "merge.h"
#include "petkit/splitmix.h"

namespace petkit {
namespace {

Consensus consensus_of(const std::string& name) {
  STD_TORCH_CHECK(name == "none" || name == "sum" || name == "count",
                  "consensus must be none, sum or count, got ", name);
  return name == "none" ? Consensus::none : name == "sum" ? Consensus::sum : Consensus::count;
}

// A number k 2**-24 lies below keep where k lies below this.
uint32_t share_of(float keep) {
  constexpr float all = float(1u << splitmix_bits);
  return keep < 1 ? uint32_t(std::ceil(std::max(keep, 0.0f) * all)) : 1u << splitmix_bits;
}

std::vector<DeltaTerm> terms_of(const ModelRows& rows, const Tensor& weights_, const Tensor& low_,
                                const Tensor& high_, const Tensor& keep_, const Tensor& keys_,
                                int64_t start) {
  const int64_t models = rows.models();
  const std::vector<float> weights = rounded(weights_, "weights", models);
  const std::vector<float> low = rounded(low_, "low", models),
                           high = rounded(high_, "high", models);
  const std::vector<float> keep = rounded(keep_, "keep", models);
  const std::vector<int64_t> keys = numbers_of<int64_t>(keys_, "keys", ScalarType::Long, models);
  std::vector<DeltaTerm> terms;
  for (int64_t m = 0; m < models; ++m) {
    const uint64_t state = uint64_t(keys[m]) + (uint64_t(start) + 1) * splitmix_step;
    terms.push_back({rows.row(m), weights[m], low[m], high[m], keep[m], share_of(keep[m]), state});
  }
  return terms;
}

Tensor merge_deltas(const Tensor base_, const Tensor models, const Tensor weights, const Tensor low,
                    const Tensor high, const Tensor keep, const Tensor keys, int64_t start,
                    const std::string consensus, bool normalize, double factor, ScalarType dtype) {
  const ModelRows rows(models);
  const Tensor base = base_in_order(base_, models);
  const std::vector<DeltaTerm> terms = terms_of(rows, weights, low, high, keep, keys, start);
  float divisor = 0;
  for (const DeltaTerm& term : terms)
    divisor += term.weight;
  const DeltaMerge merge{static_cast<const char*>(base.const_data_ptr()),
                         terms.data(),
                         rows.models(),
                         rows.dtype(),
                         consensus_of(consensus),
                         normalize,
                         divisor,
                         float(factor)};
  const Tensor result = new_slice(models, dtype);
  const DType stored = dtype_of(result, "dtype");
  void* out = result.mutable_data_ptr();
  const int64_t count = rows.count(), blocks = (count + block_size - 1) / block_size;
  torch::stable::parallel_for(0, blocks, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(size_t(merge_scratch(rows.models())));
    const int64_t first = begin * block_size, last = std::min(count, end * block_size);
    kernels().merge.deltas(merge, first, last - first, out, stored, scratch.data());
  });
  return result;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("merge_deltas", TORCH_BOX(&petkit::merge_deltas));
}
