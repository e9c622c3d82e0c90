#include <tuple>

#include "common/rows.h"
#include "selected_log_probs.cuh"

namespace petkit::cuda {
namespace {

void check_selection(const Tensor& logits, const Tensor& token_ids, const Tensor& mask,
                     double temperature) {
  check_logits(logits, "logits");
  check_temperature(temperature);
  check_row_mask(mask, logits);
  check_type(token_ids, "token_ids", ScalarType::Long, "int64");
  check_dimensions(token_ids, "token_ids", 2);
  check_shape(token_ids, "token_ids", {logits.size(0), token_ids.size(1)});
}

Selection selection(const Tensor& token_ids, const Tensor& mask, double temperature) {
  return {input<int64_t>(token_ids), token_ids.size(1), row_mask(mask), float(temperature)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> selected(const Tensor logits, const Tensor token_ids,
                                                    const Tensor mask, double temperature) {
  check_selection(logits, token_ids, mask, temperature);
  const OnDevice device(logits, {{"token_ids", &token_ids}, {"mask", &mask}});
  const Tensor dense = torch::stable::contiguous(logits),
               ids = torch::stable::contiguous(token_ids), kept = torch::stable::contiguous(mask);
  const int64_t rows = dense.size(0), vocab = dense.size(1);
  const auto column = [&] { return new_tensor(dense, std::array{rows}, ScalarType::Float); };
  const Tensor entropy = column(), maximum = column(), log_sum = column();
  const Tensor log_probs = new_tensor(dense, std::array{rows, ids.size(1)}, ScalarType::Float);
  const SelectedResults results{output<float>(log_probs), output<float>(entropy),
                                output<float>(maximum), output<float>(log_sum)};
  dispatch_type(dense.scalar_type(), "logits", [&](auto element) {
    using T = typename decltype(element)::type;
    selected_log_probs<T>(input<T>(dense), selection(ids, kept, temperature), results, rows, vocab,
                          device.stream());
  });
  return {log_probs, entropy, maximum, log_sum};
}

// `target` may be the logits, which are contiguous.
void write_gradient(const Tensor& logits, const Tensor& token_ids, const Tensor& mask,
                    const Tensor& maximum, const Tensor& log_sum, const Tensor& upstream,
                    double temperature, const Tensor& target) {
  check_selection(logits, token_ids, mask, temperature);
  const int64_t rows = logits.size(0), vocab = logits.size(1), count = token_ids.size(1);
  for (const auto& [name, tensor] : {std::pair{"maximum", &maximum}, {"log_sum", &log_sum}}) {
    check_float32(*tensor, name);
    check_shape(*tensor, name, {rows});
  }
  check_float32(upstream, "upstream");
  check_shape(upstream, "upstream", {rows, count});
  const OnDevice device(logits, {{"token_ids", &token_ids},
                                 {"mask", &mask},
                                 {"maximum", &maximum},
                                 {"log_sum", &log_sum},
                                 {"upstream", &upstream}});
  const Tensor ids = torch::stable::contiguous(token_ids), kept = torch::stable::contiguous(mask);
  const Tensor peak = torch::stable::contiguous(maximum), sum = torch::stable::contiguous(log_sum);
  const Tensor dense_upstream = torch::stable::contiguous(upstream);
  const Tensor chosen = new_tensor(dense_upstream, std::array{rows, count}, ScalarType::Float);
  const SelectedUpstream up{input<float>(peak), input<float>(sum), input<float>(dense_upstream),
                            output<float>(chosen)};
  dispatch_type(logits.scalar_type(), "logits", [&](auto element) {
    using T = typename decltype(element)::type;
    selected_log_probs_backward<T>(input<T>(logits), selection(ids, kept, temperature), up,
                                   output<T>(target), rows, vocab, device.stream());
  });
}

Tensor selected_backward(const Tensor logits, const Tensor token_ids, const Tensor mask,
                         const Tensor maximum, const Tensor log_sum, const Tensor upstream,
                         double temperature) {
  const Tensor dense = torch::stable::contiguous(logits);
  const Tensor gradient = torch::stable::empty_like(dense);
  write_gradient(dense, token_ids, mask, maximum, log_sum, upstream, temperature, gradient);
  return gradient;
}

void selected_backward_(const Tensor logits, const Tensor token_ids, const Tensor mask,
                        const Tensor maximum, const Tensor log_sum, const Tensor upstream,
                        double temperature) {
  check_overwritable(logits, "logits");
  write_gradient(logits, token_ids, mask, maximum, log_sum, upstream, temperature, logits);
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("selected_log_probs", TORCH_BOX(&petkit::cuda::selected));
  m.impl("selected_log_probs_backward", TORCH_BOX(&petkit::cuda::selected_backward));
  m.impl("selected_log_probs_backward_", TORCH_BOX(&petkit::cuda::selected_backward_));
}
