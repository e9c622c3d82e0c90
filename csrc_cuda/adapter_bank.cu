#include "adapter_bank.cuh"
#include "common/operator.h"

namespace petkit::cuda {
namespace {

Tensor bank_outputs(const Tensor x, const Tensor adapter_ids, const Tensor down, const Tensor up,
                    const Tensor constants, const Tensor levels, int64_t bits, int64_t out_features,
                    bool relu) {
  check_levels(levels, bits);
  check_dimensions(x, "x", 2);
  check_dimensions(down, "down", 3);
  const int64_t tokens = x.size(0), in_features = x.size(1), adapters = down.size(0),
                hidden = down.size(1);
  check_type(adapter_ids, "adapter_ids", ScalarType::Long, "int64");
  check_shape(adapter_ids, "adapter_ids", {tokens});
  check_packed(down, "down", in_features, bits);
  check_packed(up, "up", out_features, bits);
  check_shape(up, "up", {adapters, hidden, row_bytes(out_features, int(bits))});
  check_float32(constants, "constants");
  check_shape(constants, "constants", {adapters, 5});
  STD_TORCH_CHECK(hidden <= most_bank_hidden, "an adapter bank on CUDA holds at most ",
                  most_bank_hidden, " hidden values, got ", hidden);
  const OnDevice device(x, {{"adapter_ids", &adapter_ids},
                            {"down", &down},
                            {"up", &up},
                            {"constants", &constants},
                            {"levels", &levels}});
  const Tensor dense = torch::stable::contiguous(x), ids = torch::stable::contiguous(adapter_ids);
  const Tensor down_codes = torch::stable::contiguous(down),
               up_codes = torch::stable::contiguous(up);
  const Tensor numbers = torch::stable::contiguous(constants),
               codebook = torch::stable::contiguous(levels);
  const Tensor y = new_tensor(dense, std::array{tokens, out_features}, dense.scalar_type());
  Bank bank{};
  bank.down = input<uint8_t>(down_codes), bank.up = input<uint8_t>(up_codes);
  bank.constants = input<float>(numbers), bank.codebook = input<float>(codebook);
  bank.adapters = adapters, bank.hidden = hidden;
  bank.in_features = in_features, bank.out_features = out_features, bank.relu = relu;
  dispatch(dense.scalar_type(), "x", bits, [&](auto element, auto constant_bits) {
    using T = typename decltype(element)::type;
    adapter_bank<T, decltype(constant_bits)::value>(
        input<T>(dense), input<int64_t>(ids), bank, output<T>(y), tokens,
        bank_tokens_per_block(tokens, hidden), device.stream());
  });
  return y;
}

void add_bank_outputs(Tensor y, const Tensor x, const Tensor adapter_ids, const Tensor down,
                      const Tensor up, const Tensor constants, const Tensor levels, int64_t bits,
                      bool relu) {
  check_dimensions(y, "y", 2);
  const Tensor outputs =
      bank_outputs(x, adapter_ids, down, up, constants, levels, bits, y.size(1), relu);
  torch::stable::copy_(y, torch::stable::subtract(y, outputs, -1.0));
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("adapter_bank", TORCH_BOX(&petkit::cuda::bank_outputs));
  m.impl("adapter_bank_add_", TORCH_BOX(&petkit::cuda::add_bank_outputs));
}
