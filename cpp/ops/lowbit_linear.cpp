// lowbit_linear on the CPU, and its gradient in x.
#include <torch/csrc/stable/library.h>

#include "operator.h"

namespace petkit {
namespace {

constexpr int64_t token_chunk = 64;
constexpr double grain_products = 1 << 18; // multiplications worth a thread's while

using Kernel = void (*)(const PackedMatrix&, const float*, int64_t, float*, int64_t, int64_t);

// One product with rows of `in` and `out` floats: all tokens, and the whole or parts of each output
// row.
struct Product {
  const PackedMatrix& matrix;
  Kernel kernel;
  Source x;
  Sink y;
  int64_t tokens, in, out;
  int64_t group; // outputs can be split at multiples of this

  // Splits tokens over the threads, each in chunks whose outputs stay in the second-level cache.
  void by_tokens() const {
    const int64_t grain =
        std::max<int64_t>(1, int64_t(grain_products / (double(in) * double(out) + 1)));
    torch::stable::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
      const bool wide = x.dtype == DType::float32;
      std::vector<float> buffer(wide ? 0 : size_t(token_chunk * (in + out)));
      for (int64_t token = begin; token < end; token += token_chunk) {
        const int64_t count = std::min(token_chunk, end - token);
        const float* inputs = x.read(token * in, count * in, buffer.data());
        float* outputs = y.place(token * out, buffer.data() + (wide ? 0 : token_chunk * in));
        kernel(matrix, inputs, count, outputs, 0, out);
        y.write(token * out, count * out, outputs);
      }
    });
  }

  // Splits the outputs of a few tokens over the threads.
  void by_outputs() const {
    const bool wide = x.dtype == DType::float32;
    std::vector<float> buffer(wide ? 0 : size_t(tokens * (in + out)));
    const float* inputs = x.read(0, tokens * in, buffer.data());
    float* outputs = y.place(0, buffer.data() + (wide ? 0 : tokens * in));
    const double work = double(tokens) * double(in) * double(group);
    const int64_t grain = std::max<int64_t>(1, int64_t(grain_products / (work + 1)));
    torch::stable::parallel_for(
        0, (out + group - 1) / group, grain, [&](int64_t begin, int64_t end) {
          kernel(matrix, inputs, tokens, outputs, begin * group, std::min(end * group, out));
        });
    y.write(0, tokens * out, outputs);
  }

  void run() const {
    if (tokens == 0 || out == 0)
      return;
    if (tokens >= 16 * int64_t(torch::stable::get_num_threads()))
      by_tokens();
    else
      by_outputs();
  }
};

// Products of x with the matrix of `out` outputs for each of its rows.
Tensor multiply(const Tensor& x, const Tensor& packed, int64_t columns, const Tensor& shift,
                const Tensor& scale, const Tensor& codebook, int64_t bits, bool backward) {
  const auto values = values_of(codebook, scalar_of(shift, "shift"), scalar_of(scale, "scale"));
  const PackedMatrix matrix{bytes(packed), packed.size(0), columns, int(bits), values.data()};
  const int64_t in = backward ? matrix.rows : columns, out = backward ? columns : matrix.rows;
  const auto& variants = backward ? kernels().linear_backward : kernels().linear;
  Tensor y = torch::stable::new_empty(x, std::array<int64_t, 2>{x.size(0), out});
  const Product product{
      matrix, variants[variant(int(bits))],       Source(x, "x"), Sink(y), x.size(0), in,
      out,    backward ? column_group : row_group};
  // Without inputs the kernels have nothing to start their sums from.
  if (in == 0)
    torch::stable::zero_(y);
  else
    product.run();
  return y;
}

Tensor lowbit_linear(const Tensor x, const Tensor packed, const Tensor shift, const Tensor scale,
                     const Tensor codebook, int64_t bits) {
  check_bits(bits, codebook);
  check_rank(x, "x", 2);
  check_packed(packed, "packed", 2, x.size(1), bits);
  return multiply(torch::stable::contiguous(x), torch::stable::contiguous(packed), x.size(1), shift,
                  scale, codebook, bits, false);
}

Tensor lowbit_linear_backward(const Tensor grad, const Tensor packed, const Tensor shift,
                              const Tensor scale, const Tensor codebook, int64_t bits,
                              int64_t in_features) {
  check_bits(bits, codebook);
  check_rank(grad, "grad", 2);
  check_packed(packed, "packed", 2, in_features, bits);
  STD_TORCH_CHECK(grad.size(1) == packed.size(0), "grad must have ", packed.size(0),
                  " columns, one for each row of packed, got ", grad.size(1));
  return multiply(torch::stable::contiguous(grad), torch::stable::contiguous(packed), in_features,
                  shift, scale, codebook, bits, true);
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("lowbit_linear", TORCH_BOX(&petkit::lowbit_linear));
  m.impl("lowbit_linear_backward", TORCH_BOX(&petkit::lowbit_linear_backward));
}
