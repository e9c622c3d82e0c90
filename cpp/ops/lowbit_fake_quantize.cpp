// lowbit_fake_quantize on the CPU, and its straight-through gradient.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "operator.h"

namespace petkit {
namespace {

std::tuple<Tensor, Tensor, Tensor> lowbit_fake_quantize(const Tensor weight_, const Tensor codebook,
                                                        int64_t bits, bool) {
  check_bits(bits, codebook);
  const Tensor weight = torch::stable::contiguous(weight_);
  const Moments moments = moments_of(weight);
  const auto bounds = bounds_of(codebook, moments.shift, moments.scale);
  const auto values = values_of(codebook, moments.shift, moments.scale);
  Tensor quantized = torch::stable::new_empty(weight, weight.sizes());
  const Source source(weight, "weight");
  const Sink sink(quantized);
  const auto round = kernels().round[variant(int(bits))];
  over_blocks(weight.numel(), [&](int64_t, int64_t offset, int64_t count) {
    float buffer[block_size];
    float* out = sink.place(offset, buffer);
    round(source.read(offset, count, buffer), count, bounds.data(), values.data(), out);
    sink.write(offset, count, out);
  });
  return {quantized, new_scalar(weight, moments.shift), new_scalar(weight, moments.scale)};
}

// With r = std / (std + eps):
//   dL/dw_k = r g_k + (1 - r) mean(g) + sum_j(g_j (q_j - r n_j)) (w_k - mean) / ((N - 1) std)
Tensor lowbit_fake_quantize_backward(const Tensor grad_, const Tensor weight_, const Tensor shift_,
                                     const Tensor scale_, const Tensor codebook, int64_t bits) {
  check_bits(bits, codebook);
  const Tensor weight = torch::stable::contiguous(weight_), grad = torch::stable::contiguous(grad_);
  const int64_t count = weight.numel();
  STD_TORCH_CHECK(grad.numel() == count, "grad must have the weight's ", count, " values, got ",
                  grad.numel());
  STD_TORCH_CHECK(count >= 2, "weight must hold at least 2 values, got ", count);
  const float shift = scalar_of(shift_, "shift"), scale = scalar_of(scale_, "scale");
  const double spread = double(scale) + epsilon, ratio = double(scale) / spread;
  const auto bounds = bounds_of(codebook, shift, scale);
  const Straight straight{bounds.data(), floats(codebook), shift, float(ratio / spread)};
  const Source weights(weight, "weight"), gradients(grad, "grad");
  const auto sums_of = kernels().straight_sums[variant(int(bits))];
  std::vector<Sums> parts((count + block_size - 1) / block_size);
  over_blocks(count, [&](int64_t index, int64_t offset, int64_t size) {
    float w[block_size], g[block_size];
    parts[index] =
        sums_of(straight, weights.read(offset, size, w), gradients.read(offset, size, g), size);
  });
  double total = 0, inner = 0;
  for (const Sums& part : parts)
    total += part.first, inner += part.second;

  // The standard deviation of a constant matrix has no derivative; like torch.std's it counts as
  // zero.
  const double slope = scale > 0 ? inner / (double(count - 1) * scale) : 0.0;
  const float terms[3] = {float(ratio), float((1 - ratio) * total / double(count)), float(slope)};
  Tensor result = torch::stable::new_empty(weight, weight.sizes());
  const Sink sink(result);
  over_blocks(count, [&](int64_t, int64_t offset, int64_t size) {
    float w[block_size], g[block_size];
    float* out = sink.place(offset, w);
    kernels().affine(weights.read(offset, size, w), gradients.read(offset, size, g), size, shift,
                     terms, out);
    sink.write(offset, size, out);
  });
  return result;
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("lowbit_fake_quantize", TORCH_BOX(&petkit::lowbit_fake_quantize));
  m.impl("lowbit_fake_quantize_backward", TORCH_BOX(&petkit::lowbit_fake_quantize_backward));
}
