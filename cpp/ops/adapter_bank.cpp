// adapter_bank on the CPU: rows are grouped by adapter once, then each group runs down and up
// fused.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "operator.h"

namespace petkit {
namespace {

constexpr double grain_products = 1 << 18; // multiplications worth a thread's while

struct Groups {
  std::vector<int64_t> order; // tokens, those of an adapter together; those of none come first
  int64_t idle;               // how many have no adapter
  std::vector<BankBlock> blocks;
};

// A stable counting sort by adapter, cut into blocks of tokens of one adapter.
Groups group(const int64_t* ids, int64_t tokens, int64_t adapters) {
  std::vector<int64_t> end(size_t(adapters) + 1, 0);
  for (int64_t t = 0; t < tokens; ++t) {
    STD_TORCH_CHECK(ids[t] >= -1 && ids[t] < adapters, "adapter_ids must lie between -1 and ",
                    adapters - 1, ", got ", ids[t]);
    ++end[size_t(ids[t] + 1)];
  }
  const int64_t idle = end[0];
  for (size_t i = 1; i < end.size(); ++i)
    end[i] += end[i - 1];
  Groups groups{std::vector<int64_t>(size_t(tokens)), idle, {}};
  for (int64_t t = tokens - 1; t >= 0; --t)
    groups.order[size_t(--end[size_t(ids[t] + 1)])] = t;
  for (int64_t place = idle; place < tokens;) {
    const int64_t adapter = ids[groups.order[size_t(place)]];
    int64_t count = 1;
    while (count < bank_block && place + count < tokens &&
           ids[groups.order[size_t(place + count)]] == adapter)
      ++count;
    groups.blocks.push_back({adapter, groups.order.data() + place, count});
    place += count;
  }
  return groups;
}

void check_bank(const Tensor& x, const Tensor& ids, const Tensor& down, const Tensor& up,
                const Tensor& constants, int64_t bits, int64_t out_features) {
  check_rank(x, "x", 2);
  check_dtype(ids, "adapter_ids", ScalarType::Long);
  STD_TORCH_CHECK(ids.dim() == 1 && ids.size(0) == x.size(0),
                  "adapter_ids must hold one id for each of ", x.size(0), " rows, got ",
                  ids.numel());
  check_packed(down, "down", 3, x.size(1), bits);
  check_packed(up, "up", 3, out_features, bits);
  STD_TORCH_CHECK(up.size(0) == down.size(0) && up.size(1) == down.size(1), "up must hold ",
                  down.size(0), " adapters of ", down.size(1), " rows, got ", up.size(0), " of ",
                  up.size(1));
  check_dtype(constants, "constants", ScalarType::Float);
  STD_TORCH_CHECK(constants.dim() == 2 && constants.size(0) == down.size(0) &&
                      constants.size(1) == bank_constants,
                  "constants must be (", down.size(0), ", ", bank_constants, ")");
}

// Computes y, or with `add` increases what it holds; y is contiguous.
void run_bank(const Tensor& x_, const Tensor& ids_, const Tensor& down_, const Tensor& up_,
              const Tensor& constants_, const Tensor& codebook, int64_t bits, bool relu,
              const Tensor& y, bool add) {
  const Tensor x = torch::stable::contiguous(x_), ids = torch::stable::contiguous(ids_);
  const Tensor down = torch::stable::contiguous(down_), up = torch::stable::contiguous(up_);
  const Tensor constants = torch::stable::contiguous(constants_);
  const DType dtype = dtype_of(x, "x");
  const Bank bank{bytes(down),      bytes(up),    floats(constants),
                  floats(codebook), down.size(1), x.size(1),
                  y.size(1),        int(bits),    relu};
  const int64_t tokens = x.size(0);
  const Groups groups =
      group(static_cast<const int64_t*>(ids.const_data_ptr()), tokens, down.size(0));
  char* out = static_cast<char*>(y.mutable_data_ptr());
  const int64_t row = bank.out_features * item_size(dtype);
  for (int64_t i = 0; !add && i < groups.idle; ++i)
    std::memset(out + groups.order[size_t(i)] * row, 0, size_t(row));

  const auto kernel = kernels().bank[variant(int(bits))];
  const void* inputs = x.const_data_ptr();
  const int64_t blocks = int64_t(groups.blocks.size());
  const double work = double(tokens) * double(bank.hidden) * double(x.size(1) + y.size(1));
  const int64_t grain = std::max<int64_t>(1, int64_t(grain_products * double(blocks) / (work + 1)));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(size_t(bank_scratch(bank)));
    for (int64_t i = begin; i < end; ++i)
      kernel(bank, inputs, dtype, groups.blocks[size_t(i)], out, add, scratch.data());
  });
}

Tensor adapter_bank(const Tensor x, const Tensor ids, const Tensor down, const Tensor up,
                    const Tensor constants, const Tensor codebook, int64_t bits,
                    int64_t out_features, bool relu) {
  check_bits(bits, codebook);
  check_bank(x, ids, down, up, constants, bits, out_features);
  Tensor y = torch::stable::new_empty(x, std::array<int64_t, 2>{x.size(0), out_features});
  prefer_huge_pages(y, y.numel() * item_size(dtype_of(x, "x")));
  run_bank(x, ids, down, up, constants, codebook, bits, relu, y, false);
  return y;
}

void adapter_bank_add_(Tensor y, const Tensor x, const Tensor ids, const Tensor down,
                       const Tensor up, const Tensor constants, const Tensor codebook, int64_t bits,
                       bool relu) {
  check_bits(bits, codebook);
  check_rank(y, "y", 2);
  check_bank(x, ids, down, up, constants, bits, y.size(1));
  check_dtype(y, "y", x.scalar_type());
  STD_TORCH_CHECK(y.size(0) == x.size(0), "y must have ", x.size(0), " rows, got ", y.size(0));
  Tensor target = torch::stable::contiguous(y);
  run_bank(x, ids, down, up, constants, codebook, bits, relu, target, true);
  if (!y.is_contiguous())
    torch::stable::copy_(y, target);
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("adapter_bank", TORCH_BOX(&petkit::adapter_bank));
  m.impl("adapter_bank_add_", TORCH_BOX(&petkit::adapter_bank_add_));
}
