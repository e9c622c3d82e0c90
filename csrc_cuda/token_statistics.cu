#include <tuple>

#include "common/rows.h"
#include "token_statistics.cuh"

namespace petkit::cuda {
namespace {

void check_rows(const Tensor& logits, const Tensor& token_ids, double temperature) {
  check_logits(logits, "logits");
  check_temperature(temperature);
  check_type(token_ids, "token_ids", ScalarType::Long, "int64");
  if (token_ids.numel() > 0)
    check_shape(token_ids, "token_ids", {logits.size(0)});
}

using Statistics =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Statistics statistics(const Tensor logits, const Tensor token_ids, int64_t top_k,
                      double temperature) {
  check_rows(logits, token_ids, temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  STD_TORCH_CHECK(top_k >= 0 && top_k <= vocab, "top_k must lie between 0 and ", vocab, ", got ",
                  top_k);
  STD_TORCH_CHECK(top_k <= most_top_k, "top_k must be at most ", most_top_k, " on CUDA, got ",
                  top_k);
  const OnDevice device(logits, {{"token_ids", &token_ids}});
  const Tensor dense = torch::stable::contiguous(logits),
               ids = torch::stable::contiguous(token_ids);
  const bool chosen = ids.numel() > 0;
  const auto column = [&](bool wanted) {
    return new_tensor(dense, std::array{wanted ? rows : 0}, ScalarType::Float);
  };
  const Tensor log_z = column(true), entropy = column(true), varentropy = column(true);
  const Tensor max_prob = column(true), log_prob = column(chosen), maximum = column(true);
  const Tensor log_sum = column(true);
  const Tensor top_log_probs = new_tensor(dense, std::array{rows, top_k}, ScalarType::Float);
  const Tensor top_ids = new_tensor(dense, std::array{rows, top_k}, ScalarType::Long);
  const Wanted wanted{chosen ? input<int64_t>(ids) : nullptr, top_k, float(temperature)};
  const Results results{
      output<float>(log_z),     output<float>(entropy),  output<float>(varentropy),
      output<float>(max_prob),  output<float>(log_prob), output<float>(top_log_probs),
      output<int64_t>(top_ids), output<float>(maximum),  output<float>(log_sum)};
  dispatch_type(dense.scalar_type(), "logits", [&](auto element) {
    using T = typename decltype(element)::type;
    token_statistics<T>(input<T>(dense), wanted, results, rows, vocab, device.stream());
  });
  return {log_z, entropy, varentropy, max_prob, log_prob, top_log_probs, top_ids, maximum, log_sum};
}

Tensor statistics_backward(const Tensor logits, const Tensor token_ids, const Tensor maximum,
                           const Tensor log_sum, const Tensor entropy, const Tensor grad_log_z,
                           const Tensor grad_entropy, const Tensor grad_log_prob,
                           double temperature) {
  check_rows(logits, token_ids, temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const bool chosen = token_ids.numel() > 0;
  const std::initializer_list<std::pair<const char*, const Tensor*>> columns{
      {"maximum", &maximum},           {"log_sum", &log_sum},
      {"entropy", &entropy},           {"grad_log_z", &grad_log_z},
      {"grad_entropy", &grad_entropy}, {"grad_log_prob", &grad_log_prob}};
  for (const auto& [name, tensor] : columns) {
    check_float32(*tensor, name);
    if (tensor != &grad_log_prob || chosen)
      check_shape(*tensor, name, {rows});
  }
  const OnDevice device(logits, columns);
  const Tensor dense = torch::stable::contiguous(logits),
               ids = torch::stable::contiguous(token_ids);
  const Tensor peak = torch::stable::contiguous(maximum), sum = torch::stable::contiguous(log_sum);
  const Tensor uncertainty = torch::stable::contiguous(entropy);
  const Tensor of_log_z = torch::stable::contiguous(grad_log_z);
  const Tensor of_entropy = torch::stable::contiguous(grad_entropy);
  const Tensor of_log_prob = torch::stable::contiguous(grad_log_prob);
  const Tensor gradient = torch::stable::empty_like(dense);
  const Upstream upstream{chosen ? input<int64_t>(ids) : nullptr,
                          input<float>(peak),
                          input<float>(sum),
                          input<float>(uncertainty),
                          input<float>(of_log_z),
                          input<float>(of_entropy),
                          chosen ? input<float>(of_log_prob) : nullptr,
                          float(temperature)};
  dispatch_type(dense.scalar_type(), "logits", [&](auto element) {
    using T = typename decltype(element)::type;
    token_statistics_backward<T>(input<T>(dense), upstream, output<T>(gradient), rows, vocab,
                                 device.stream());
  });
  return gradient;
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("token_statistics", TORCH_BOX(&petkit::cuda::statistics));
  m.impl("token_statistics_backward", TORCH_BOX(&petkit::cuda::statistics_backward));
}
