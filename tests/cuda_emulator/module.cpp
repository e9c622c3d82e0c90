// The emulator's face to Python: each kernel's host launcher on NumPy arrays. Inputs are copied
// into guarded buffers and outputs start as NaN, so that an access outside a buffer or an element
// that is never written shows.
//
// bf16 and fp16 arrays travel as their uint16 bits with the element type named by a string.
#include <algorithm>
#include <string>
#include <vector>

#include "adapter_bank.cuh"
#include "bindings.h"
#include "example_kernels.cuh"
#include "lowbit_dequantize.cuh"
#include "lowbit_fake_quantize.cuh"
#include "lowbit_linear.cuh"
#include "lowbit_quantize.cuh"
#include "lowbit_transpose.cuh"
#include "token_statistics.cuh"

namespace {

py::tuple quantize(const py::array& weight, const py::array& codebook, const std::string& type,
                   int bits, unsigned seed) {
  emulator::machine.seed = seed;
  py::tuple result;
  const int64_t rows = weight.shape(0), columns = weight.shape(1),
                bytes = petkit::row_bytes(columns, bits);
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* parts = arena.scratch<pc::Moments>(pc::statistics_parts(rows * columns), "parts");
    auto* packed = arena.scratch<uint8_t>(rows * bytes, "packed");
    auto *shift = arena.scratch<float>(1, "shift"), *scale = arena.scratch<float>(1, "scale");
    pc::lowbit_quantize<T, b.value>(arena.input<T>(weight, "weight"),
                                    arena.input<float>(codebook, "codebook"), parts, packed, shift,
                                    scale, rows, columns, nullptr);
    arena.check();
    result = py::make_tuple(download(packed, {rows, bytes}), *shift, *scale);
  });
  return result;
}

py::array dequantize(const py::array& packed, float shift, float scale, const py::array& codebook,
                     const std::string& type, int bits, int64_t columns, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = packed.shape(0);
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* weight = arena.scratch<T>(rows * columns, "weight");
    pc::lowbit_dequantize<T, b.value>(arena.input<uint8_t>(packed, "packed"), &shift, &scale,
                                      arena.input<float>(codebook, "codebook"), weight, rows,
                                      columns, nullptr);
    arena.check();
    result = download(weight, {rows, columns});
  });
  return result;
}

py::tuple fake_quantize(const py::array& weight, const py::array& codebook, const std::string& type,
                        int bits, unsigned seed) {
  emulator::machine.seed = seed;
  py::tuple result;
  const int64_t count = weight.size();
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* parts = arena.scratch<pc::Moments>(pc::statistics_parts(count), "parts");
    auto* quantized = arena.scratch<T>(count, "quantized");
    auto *shift = arena.scratch<float>(1, "shift"), *scale = arena.scratch<float>(1, "scale");
    pc::lowbit_fake_quantize<T, b.value>(arena.input<T>(weight, "weight"),
                                         arena.input<float>(codebook, "codebook"), parts, quantized,
                                         shift, scale, count, nullptr);
    arena.check();
    result =
        py::make_tuple(download(quantized, {weight.shape(0), weight.shape(1)}), *shift, *scale);
  });
  return result;
}

py::array fake_quantize_backward(const py::array& grad, const py::array& weight, float shift,
                                 float scale, const py::array& codebook, const std::string& type,
                                 int bits, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t count = weight.size();
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* parts = arena.scratch<pc::GradientSums>(pc::statistics_parts(count), "parts");
    auto* grad_weight = arena.scratch<T>(count, "grad_weight");
    pc::lowbit_fake_quantize_backward<T, b.value>(
        arena.input<T>(grad, "grad"), arena.input<T>(weight, "weight"), &shift, &scale,
        arena.input<float>(codebook, "codebook"), parts, grad_weight, count, nullptr);
    arena.check();
    result = download(grad_weight, {weight.shape(0), weight.shape(1)});
  });
  return result;
}

py::array linear(const py::array& x, const py::array& packed, float shift, float scale,
                 const py::array& codebook, const std::string& type, int bits, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = x.shape(0), in_features = x.shape(1), out_features = packed.shape(0);
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* y = arena.scratch<T>(rows * out_features, "y");
    pc::lowbit_linear<T, b.value>(arena.input<T>(x, "x"), arena.input<uint8_t>(packed, "packed"),
                                  &shift, &scale, arena.input<float>(codebook, "codebook"), y, rows,
                                  in_features, out_features, nullptr);
    arena.check();
    result = download(y, {rows, out_features});
  });
  return result;
}

py::array linear_backward(const py::array& grad, const py::array& packed, float shift, float scale,
                          const py::array& codebook, const std::string& type, int bits,
                          int64_t in_features, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = grad.shape(0), out_features = grad.shape(1);
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* grad_x = arena.scratch<T>(rows * in_features, "grad_x");
    pc::lowbit_linear_backward<T, b.value>(
        arena.input<T>(grad, "grad"), arena.input<uint8_t>(packed, "packed"), &shift, &scale,
        arena.input<float>(codebook, "codebook"), grad_x, rows, in_features, out_features, nullptr);
    arena.check();
    result = download(grad_x, {rows, in_features});
  });
  return result;
}

py::array transpose(const py::array& packed, int bits, int64_t columns, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t stacks = packed.shape(0), rows = packed.shape(1),
                bytes = petkit::row_bytes(rows, bits);
  dispatch_bits(bits, [&](auto b) {
    Arena arena;
    auto* transposed = arena.scratch<uint8_t>(stacks * columns * bytes, "transposed");
    pc::lowbit_transpose<b.value>(arena.input<uint8_t>(packed, "packed"), transposed, stacks, rows,
                                  columns, nullptr);
    arena.check();
    result = download(transposed, {stacks, columns, bytes});
  });
  return result;
}

py::array adapter_bank(const py::array& x, const py::array& adapter_ids, const py::array& down,
                       const py::array& up, const py::array& constants, const py::array& codebook,
                       const std::string& type, int bits, int64_t out_features, bool relu,
                       int tokens_per_block, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t tokens = x.shape(0);
  dispatch(type, bits, [&](auto element, auto b) {
    using T = decltype(element);
    Arena arena;
    auto* y = arena.scratch<T>(tokens * out_features, "y");
    const pc::Bank bank{arena.input<uint8_t>(down, "down"),
                        arena.input<uint8_t>(up, "up"),
                        arena.input<float>(constants, "constants"),
                        arena.input<float>(codebook, "codebook"),
                        down.shape(0),
                        down.shape(1),
                        x.shape(1),
                        out_features,
                        relu,
                        false,
                        false};
    pc::adapter_bank<T, b.value>(arena.input<T>(x, "x"),
                                 arena.input<int64_t>(adapter_ids, "adapter_ids"), bank, y, tokens,
                                 tokens_per_block, nullptr);
    arena.check();
    result = download(y, {tokens, out_features});
  });
  return result;
}

// Null where no tokens are asked for.
const int64_t* optional_ids(Arena& arena, const py::object& token_ids) {
  if (token_ids.is_none())
    return nullptr;
  return arena.input<int64_t>(token_ids.cast<py::array>(), "token_ids");
}

// Columns in the order of the operator's results; without tokens the fifth stays nan.
py::tuple token_statistics(const py::array& logits, const py::object& token_ids, int64_t top_k,
                           float temperature, const std::string& type, unsigned seed) {
  emulator::machine.seed = seed;
  py::tuple result;
  const int64_t rows = logits.shape(0), vocab = logits.shape(1);
  dispatch_type(type, [&](auto element) {
    using T = decltype(element);
    Arena arena;
    const int64_t* ids = optional_ids(arena, token_ids);
    const auto column = [&](const char* name) { return arena.scratch<float>(rows, name); };
    const pc::Results results{column("log_z"),
                              column("entropy"),
                              column("varentropy"),
                              column("max_prob"),
                              column("log_prob"),
                              arena.scratch<float>(rows * top_k, "top_log_probs"),
                              arena.scratch<int64_t>(rows * top_k, "top_ids"),
                              column("maximum"),
                              column("log_sum")};
    pc::token_statistics<T>(arena.input<T>(logits, "logits"), pc::Wanted{ids, top_k, temperature},
                            results, rows, vocab, nullptr);
    arena.check();
    py::array_t<int64_t> top_ids({rows, top_k});
    std::copy(results.top_ids, results.top_ids + rows * top_k, top_ids.mutable_data());
    const auto give = [&](const float* from) { return download(from, {rows}); };
    result = py::make_tuple(give(results.log_z), give(results.entropy), give(results.varentropy),
                            give(results.max_prob), give(results.log_prob),
                            download(results.top_log_probs, {rows, top_k}), top_ids,
                            give(results.maximum), give(results.log_sum));
  });
  return result;
}

// `columns` are maximum, log_sum, entropy and the gradients of log_z, entropy and log_prob.
py::array token_statistics_backward(const py::array& logits, const py::object& token_ids,
                                    const py::array& columns, float temperature,
                                    const std::string& type, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = logits.shape(0), vocab = logits.shape(1);
  dispatch_type(type, [&](auto element) {
    using T = decltype(element);
    Arena arena;
    const int64_t* ids = optional_ids(arena, token_ids);
    const float* at = arena.input<float>(columns, "columns");
    const pc::Upstream upstream{
        ids,           at,         at + rows, at + 2 * rows, at + 3 * rows, at + 4 * rows,
        at + 5 * rows, temperature};
    auto* gradient = arena.scratch<T>(rows * vocab, "gradient");
    pc::token_statistics_backward<T>(arena.input<T>(logits, "logits"), upstream, gradient, rows,
                                     vocab, nullptr);
    arena.check();
    result = download(gradient, {rows, vocab});
  });
  return result;
}

} // namespace

PYBIND11_MODULE(cuda_emulator, m) {
  m.def("quantize", &quantize);
  m.def("dequantize", &dequantize);
  m.def("fake_quantize", &fake_quantize);
  m.def("fake_quantize_backward", &fake_quantize_backward);
  m.def("linear", &linear);
  m.def("linear_backward", &linear_backward);
  m.def("transpose", &transpose);
  m.def("adapter_bank", &adapter_bank);
  m.def("token_statistics", &token_statistics);
  m.def("token_statistics_backward", &token_statistics_backward);
  bind_examples(m);
}
