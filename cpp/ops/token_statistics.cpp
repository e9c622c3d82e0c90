// token_statistics on the CPU: softmax statistics of rows of logits from one read, and their
// gradient.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "softmax_rows.h"

namespace petkit {
namespace {

void check_tokens(const Tensor& token_ids, int64_t rows, int64_t vocab) {
  check_dtype(token_ids, "token_ids", ScalarType::Long);
  STD_TORCH_CHECK(token_ids.numel() == 0 || token_ids.numel() == rows,
                  "token_ids must hold one id for each of ", rows, " rows, got ",
                  token_ids.numel());
  const int64_t* ids = static_cast<const int64_t*>(token_ids.const_data_ptr());
  for (int64_t row = 0; row < token_ids.numel(); ++row)
    STD_TORCH_CHECK(ids[row] >= 0 && ids[row] < vocab, "token_ids must lie between 0 and ",
                    vocab - 1, ", got ", ids[row], " in row ", row);
}

float* out(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

using Statistics =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Statistics token_statistics(const Tensor logits_, const Tensor token_ids_, int64_t top_k,
                            double temperature) {
  check_rows(logits_, temperature);
  const Tensor logits = torch::stable::contiguous(logits_);
  const Tensor token_ids = torch::stable::contiguous(token_ids_);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  STD_TORCH_CHECK(top_k >= 0 && top_k <= vocab, "top_k must lie between 0 and ", vocab, ", got ",
                  top_k);
  check_tokens(token_ids, rows, vocab);
  const int64_t* ids = static_cast<const int64_t*>(token_ids.const_data_ptr());
  const bool chosen = token_ids.numel() > 0;
  const auto column = [&](bool wanted) {
    return torch::stable::new_empty(logits, std::array<int64_t, 1>{wanted ? rows : 0},
                                    ScalarType::Float);
  };
  const Tensor log_z = column(true), entropy = column(true), varentropy = column(true);
  const Tensor max_prob = column(true), log_prob = column(chosen);
  const Tensor maximum = column(true), log_sum = column(true);
  const std::array<int64_t, 2> shape{rows, top_k};
  const Tensor top_log_probs = torch::stable::new_empty(logits, shape, ScalarType::Float);
  const Tensor top_ids = torch::stable::new_empty(logits, shape, ScalarType::Long);
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    Rows reader(logits, top_k, temperature);
    for (int64_t r = begin; r < end; ++r) {
      const RowState state = reader.read(r);
      out(log_z)[r] = float(state.log_z(reader.inverse_temperature()));
      out(entropy)[r] = float(state.entropy());
      out(varentropy)[r] = float(state.varentropy());
      out(max_prob)[r] = float(std::exp(-state.log_sum()));
      out(maximum)[r] = state.maximum();
      out(log_sum)[r] = float(state.log_sum());
      if (chosen)
        out(log_prob)[r] = float(reader.log_prob(state, r, ids[r]));
      if (top_k > 0)
        reader.write_largest(state, r, out(top_log_probs) + r * top_k,
                             static_cast<int64_t*>(top_ids.mutable_data_ptr()) + r * top_k);
    }
  });
  return {log_z, entropy, varentropy, max_prob, log_prob, top_log_probs, top_ids, maximum, log_sum};
}

// With p = exp((x - maximum) / temperature - log_sum), the derivatives of log z, of the entropy and
// of the token's log-probability are p, -p (log p + entropy) and [x is the token] - p, all over the
// temperature.
Tensor token_statistics_backward(const Tensor logits_, const Tensor token_ids_,
                                 const Tensor maximum, const Tensor log_sum, const Tensor entropy,
                                 const Tensor grad_log_z_, const Tensor grad_entropy_,
                                 const Tensor grad_log_prob_, double temperature) {
  check_rows(logits_, temperature);
  const Tensor logits = torch::stable::contiguous(logits_);
  const Tensor token_ids = torch::stable::contiguous(token_ids_);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  check_tokens(token_ids, rows, vocab);
  const int64_t* ids = static_cast<const int64_t*>(token_ids.const_data_ptr());
  const bool chosen = token_ids.numel() > 0;
  const Tensor grad_log_z = torch::stable::contiguous(grad_log_z_),
               grad_entropy = torch::stable::contiguous(grad_entropy_),
               grad_log_prob = torch::stable::contiguous(grad_log_prob_);
  const auto check_column = [&](const Tensor& column, const char* name, int64_t length) {
    check_dtype(column, name, ScalarType::Float);
    STD_TORCH_CHECK(column.numel() == length, name, " must hold ", length, " values, got ",
                    column.numel());
  };
  check_column(maximum, "maximum", rows);
  check_column(log_sum, "log_sum", rows);
  check_column(entropy, "entropy", rows);
  check_column(grad_log_z, "grad_log_z", rows);
  check_column(grad_entropy, "grad_entropy", rows);
  check_column(grad_log_prob, "grad_log_prob", chosen ? rows : 0);
  const Tensor gradient = torch::stable::new_empty(logits, logits.sizes());
  const DType dtype = dtype_of(logits, "logits");
  const char* source = static_cast<const char*>(logits.const_data_ptr());
  char* target = static_cast<char*>(gradient.mutable_data_ptr());
  prefer_huge_pages(gradient, gradient.numel() * item_size(dtype));
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const double token = chosen ? floats(grad_log_prob)[r] : 0, sum = floats(log_sum)[r];
      const double uncertain = floats(grad_entropy)[r];
      // p (plain - uncertain log p) / temperature, with log p = ln2 d - log_sum.
      const double plain = floats(grad_log_z)[r] - token - uncertain * floats(entropy)[r];
      const double share = std::exp(-sum) / temperature;
      const SoftmaxSlope slope{floats(maximum)[r], float(log2_e / temperature),
                               float(share * (plain + uncertain * sum)),
                               float(-share * uncertain * ln2)};
      const int64_t bytes = vocab * item_size(dtype);
      kernels().softmax_gradient(source + r * bytes, dtype, vocab, slope, target + r * bytes);
      if (chosen) {
        const int64_t place = r * bytes + ids[r] * item_size(dtype);
        float x, g;
        kernels().to_float(source + place, dtype, &x, 1);
        const double d = (double(x) - slope.maximum) * log2_e / temperature;
        g = float(token / temperature +
                  std::exp2(d) * (double(slope.constant) + double(slope.slope) * d));
        kernels().from_float(&g, dtype, target + place, 1);
      }
    }
  });
  return gradient;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("token_statistics", TORCH_BOX(&petkit::token_statistics));
  m.impl("token_statistics_backward", TORCH_BOX(&petkit::token_statistics_backward));
}
