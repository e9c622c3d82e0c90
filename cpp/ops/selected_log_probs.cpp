// selected_log_probs on the CPU: log-probabilities of a few tokens of each row of logits and the
// row's entropy from one read, and the gradient, which may take the place of the logits.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "softmax_rows.h"

namespace petkit {
namespace {

const bool* given(const Tensor& mask, int64_t rows) {
  check_dtype(mask, "mask", ScalarType::Bool);
  STD_TORCH_CHECK(mask.numel() == 0 || mask.numel() == rows,
                  "mask must hold one value for each of ", rows, " rows, got ", mask.numel());
  return mask.numel() == 0 ? nullptr : static_cast<const bool*>(mask.const_data_ptr());
}

// The ids of rows that count; the others' may be anything.
const int64_t* checked_ids(const Tensor& token_ids, const Tensor& logits, const bool* wanted) {
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  check_dtype(token_ids, "token_ids", ScalarType::Long);
  check_rank(token_ids, "token_ids", 2);
  STD_TORCH_CHECK(token_ids.size(0) == rows, "token_ids must have ", rows, " rows, got ",
                  token_ids.size(0));
  const int64_t* ids = static_cast<const int64_t*>(token_ids.const_data_ptr());
  const int64_t k = token_ids.size(1);
  for (int64_t i = 0; i < rows * k; ++i)
    STD_TORCH_CHECK((wanted != nullptr && !wanted[i / k]) || (ids[i] >= 0 && ids[i] < vocab),
                    "token_ids must lie between 0 and ", vocab - 1, ", got ", ids[i], " in row ",
                    i / k);
  return ids;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> selected_log_probs(const Tensor logits_,
                                                              const Tensor token_ids_,
                                                              const Tensor mask_,
                                                              double temperature) {
  check_rows(logits_, temperature);
  const Tensor logits = torch::stable::contiguous(logits_);
  const Tensor token_ids = torch::stable::contiguous(token_ids_);
  const Tensor mask = torch::stable::contiguous(mask_);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const bool* wanted = given(mask, rows);
  const int64_t* ids = checked_ids(token_ids, logits, wanted);
  const int64_t k = token_ids.size(1);
  const auto column = [&] {
    return torch::stable::new_empty(logits, std::array<int64_t, 1>{rows}, ScalarType::Float);
  };
  const Tensor entropy = column(), maximum = column(), log_sum = column();
  const Tensor log_probs =
      torch::stable::new_empty(logits, std::array<int64_t, 2>{rows, k}, ScalarType::Float);
  const auto out = [](const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); };
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    Rows reader(logits, 0, temperature);
    for (int64_t r = begin; r < end; ++r) {
      float* own = out(log_probs) + r * k;
      if (wanted != nullptr && !wanted[r]) {
        std::fill_n(own, k, 0.0f);
        out(entropy)[r] = out(maximum)[r] = out(log_sum)[r] = 0;
        continue;
      }
      const RowState state = reader.read(r);
      for (int64_t j = 0; j < k; ++j)
        own[j] = float(reader.log_prob(state, r, ids[r * k + j]));
      out(entropy)[r] = float(state.entropy());
      out(maximum)[r] = state.maximum();
      out(log_sum)[r] = float(state.log_sum());
    }
  });
  return {log_probs, entropy, maximum, log_sum};
}

// What a row's gradient is at the tokens that were asked for, where a token may stand twice.
class Tokens {
public:
  Tokens(const int64_t* ids, const float* upstream, int64_t k) {
    std::vector<Entry> all(k);
    for (int64_t j = 0; j < k; ++j) {
      all[j] = {ids[j], double(upstream[j])};
      total_ += double(upstream[j]);
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Entry& one, const Entry& two) { return one.id < two.id; });
    for (const Entry& entry : all)
      if (!entries_.empty() && entries_.back().id == entry.id)
        entries_.back().gradient += entry.gradient;
      else
        entries_.push_back(entry);
  }
  double total() const { return total_; }
  // Before the logits give place to the gradient.
  void add_softmax(const char* row, DType dtype, const SoftmaxSlope& slope, double temperature) {
    for (Entry& entry : entries_) {
      float x;
      kernels().to_float(row + entry.id * item_size(dtype), dtype, &x, 1);
      const double d = (double(x) - slope.maximum) * log2_e / temperature;
      entry.gradient = entry.gradient / temperature + std::exp2(d) * double(slope.constant);
    }
  }
  void write(char* row, DType dtype) const {
    for (const Entry& entry : entries_) {
      const float value = float(entry.gradient);
      kernels().from_float(&value, dtype, row + entry.id * item_size(dtype), 1);
    }
  }

private:
  struct Entry {
    int64_t id;
    double gradient;
  };
  std::vector<Entry> entries_; // their ids rise
  double total_ = 0;
};

void fill_nan(char* row, DType dtype, int64_t count) {
  const float value = NAN;
  for (int64_t i = 0; i < count; ++i)
    kernels().from_float(&value, dtype, row + i * item_size(dtype), 1);
}

// d log p(token) / d x = ([x is the token] - p) / temperature; `target` may be the logits.
void write_gradient(const Tensor& logits, const Tensor& token_ids_, const Tensor& mask_,
                    const Tensor& maximum_, const Tensor& log_sum_, const Tensor& upstream_,
                    double temperature, const Tensor& target) {
  check_rows(logits, temperature);
  const Tensor token_ids = torch::stable::contiguous(token_ids_);
  const Tensor mask = torch::stable::contiguous(mask_);
  const Tensor upstream = torch::stable::contiguous(upstream_);
  const Tensor maximum = torch::stable::contiguous(maximum_);
  const Tensor log_sum = torch::stable::contiguous(log_sum_);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const bool* wanted = given(mask, rows);
  const int64_t* ids = checked_ids(token_ids, logits, wanted);
  const int64_t k = token_ids.size(1);
  for (const Tensor* column : {&maximum, &log_sum, &upstream})
    check_dtype(*column, "statistics and upstream", ScalarType::Float);
  STD_TORCH_CHECK(maximum.numel() == rows && log_sum.numel() == rows &&
                      upstream.numel() == rows * k,
                  "statistics and upstream must belong to ", rows, " rows of ", k, " tokens, got ",
                  maximum.numel(), ", ", log_sum.numel(), " and ", upstream.numel(), " values");
  const DType dtype = dtype_of(logits, "logits");
  const int64_t bytes = vocab * item_size(dtype);
  const char* source = static_cast<const char*>(logits.const_data_ptr());
  char* sink = static_cast<char*>(target.mutable_data_ptr());
  prefer_huge_pages(target, target.numel() * item_size(dtype));
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* out = sink + r * bytes;
      if (wanted != nullptr && !wanted[r]) {
        std::fill_n(out, bytes, char(0));
        continue;
      }
      // Beside a +infinity every other token is impossible, but no less unknown.
      if (std::isnan(floats(log_sum)[r])) {
        fill_nan(out, dtype, vocab);
        continue;
      }
      Tokens tokens(ids + r * k, floats(upstream) + r * k, k);
      const double share = std::exp(-double(floats(log_sum)[r])) / temperature;
      const SoftmaxSlope slope{floats(maximum)[r], float(log2_e / temperature),
                               float(-share * tokens.total()), 0};
      tokens.add_softmax(source + r * bytes, dtype, slope, temperature);
      kernels().softmax_gradient(source + r * bytes, dtype, vocab, slope, out);
      tokens.write(out, dtype);
    }
  });
}

Tensor selected_log_probs_backward(const Tensor logits_, const Tensor token_ids, const Tensor mask,
                                   const Tensor maximum, const Tensor log_sum,
                                   const Tensor upstream, double temperature) {
  const Tensor logits = torch::stable::contiguous(logits_);
  const Tensor gradient = torch::stable::new_empty(logits, logits.sizes());
  write_gradient(logits, token_ids, mask, maximum, log_sum, upstream, temperature, gradient);
  return gradient;
}

void selected_log_probs_backward_(const Tensor logits, const Tensor token_ids, const Tensor mask,
                                  const Tensor maximum, const Tensor log_sum, const Tensor upstream,
                                  double temperature) {
  STD_TORCH_CHECK(logits.is_contiguous(), "logits must be contiguous to be overwritten");
  write_gradient(logits, token_ids, mask, maximum, log_sum, upstream, temperature, logits);
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("selected_log_probs", TORCH_BOX(&petkit::selected_log_probs));
  m.impl("selected_log_probs_backward", TORCH_BOX(&petkit::selected_log_probs_backward));
  m.impl("selected_log_probs_backward_", TORCH_BOX(&petkit::selected_log_probs_backward_));
}
