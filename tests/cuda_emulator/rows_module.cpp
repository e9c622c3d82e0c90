// The emulator's face to Python for operators over rows of logits; see module.cpp.
#include <string>
#include <vector>

#include "bindings.h"
#include "divergence.cuh"
#include "selected_log_probs.cuh"

namespace {

pc::RowMask optional_mask(Arena& arena, const py::object& mask) {
  if (mask.is_none())
    return {nullptr};
  return {arena.input<bool>(mask.cast<py::array>(), "mask")};
}

// Calls with values of the student's and the teacher's element types.
template <class Call>
void dispatch_pair(const std::string& student, const std::string& teacher, Call call) {
  dispatch_type(student, [&](auto a) { dispatch_type(teacher, [&](auto b) { call(a, b); }); });
}

py::tuple divergence(const py::array& student, const py::array& teacher, const py::object& mask,
                     double beta, double temperature, const std::string& of_student,
                     const std::string& of_teacher, unsigned seed) {
  emulator::machine.seed = seed;
  py::tuple result;
  const int64_t rows = student.shape(0), vocab = student.shape(1);
  dispatch_pair(of_student, of_teacher, [&](auto a, auto b) {
    using A = decltype(a);
    using B = decltype(b);
    Arena arena;
    const pc::DivergenceResults results{
        arena.scratch<float>(rows, "loss"), arena.scratch<float>(rows, "forward_kl"),
        arena.scratch<float>(rows, "reverse_kl"),
        arena.scratch<float>(rows * pc::statistics_width, "statistics")};
    pc::divergence<A, B>(arena.input<A>(student, "student"), arena.input<B>(teacher, "teacher"),
                         {optional_mask(arena, mask), beta, temperature}, results, rows, vocab,
                         nullptr);
    arena.check();
    result = py::make_tuple(download(results.loss, {rows}), download(results.forward_kl, {rows}),
                            download(results.reverse_kl, {rows}),
                            download(results.statistics, {rows, pc::statistics_width}));
  });
  return result;
}

// With `overwrite` the gradient takes the place of a copy of the student's logits.
py::array divergence_backward(const py::array& student, const py::array& teacher,
                              const py::object& mask, const py::array& statistics,
                              const py::array& upstream, double beta, double temperature,
                              const std::string& of_student, const std::string& of_teacher,
                              bool overwrite, unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = student.shape(0), vocab = student.shape(1);
  dispatch_pair(of_student, of_teacher, [&](auto a, auto b) {
    using A = decltype(a);
    using B = decltype(b);
    Arena arena;
    const A* logits = arena.input<A>(student, "student");
    A* gradient = overwrite ? const_cast<A*>(logits) : arena.scratch<A>(rows * vocab, "gradient");
    pc::divergence_backward<A, B>(
        logits, arena.input<B>(teacher, "teacher"), arena.input<float>(statistics, "statistics"),
        arena.input<float>(upstream, "upstream"), {optional_mask(arena, mask), beta, temperature},
        gradient, rows, vocab, nullptr);
    arena.check();
    result = download(gradient, {rows, vocab});
  });
  return result;
}

py::tuple selected_log_probs(const py::array& logits, const py::array& token_ids,
                             const py::object& mask, float temperature, const std::string& type,
                             unsigned seed) {
  emulator::machine.seed = seed;
  py::tuple result;
  const int64_t rows = logits.shape(0), vocab = logits.shape(1), count = token_ids.shape(1);
  dispatch_type(type, [&](auto element) {
    using T = decltype(element);
    Arena arena;
    const pc::Selection wanted{arena.input<int64_t>(token_ids, "token_ids"), count,
                               optional_mask(arena, mask), temperature};
    const auto column = [&](const char* name) { return arena.scratch<float>(rows, name); };
    const pc::SelectedResults results{arena.scratch<float>(rows * count, "log_probs"),
                                      column("entropy"), column("maximum"), column("log_sum")};
    pc::selected_log_probs<T>(arena.input<T>(logits, "logits"), wanted, results, rows, vocab,
                              nullptr);
    arena.check();
    result = py::make_tuple(download(results.log_probs, {rows, count}),
                            download(results.entropy, {rows}), download(results.maximum, {rows}),
                            download(results.log_sum, {rows}));
  });
  return result;
}

py::array selected_log_probs_backward(const py::array& logits, const py::array& token_ids,
                                      const py::object& mask, const py::array& maximum,
                                      const py::array& log_sum, const py::array& upstream,
                                      float temperature, const std::string& type, bool overwrite,
                                      unsigned seed) {
  emulator::machine.seed = seed;
  py::array result;
  const int64_t rows = logits.shape(0), vocab = logits.shape(1), count = token_ids.shape(1);
  dispatch_type(type, [&](auto element) {
    using T = decltype(element);
    Arena arena;
    const pc::Selection wanted{arena.input<int64_t>(token_ids, "token_ids"), count,
                               optional_mask(arena, mask), temperature};
    const pc::SelectedUpstream up{
        arena.input<float>(maximum, "maximum"), arena.input<float>(log_sum, "log_sum"),
        arena.input<float>(upstream, "upstream"), arena.scratch<float>(rows * count, "chosen")};
    const T* given = arena.input<T>(logits, "logits");
    T* gradient = overwrite ? const_cast<T*>(given) : arena.scratch<T>(rows * vocab, "gradient");
    pc::selected_log_probs_backward<T>(given, wanted, up, gradient, rows, vocab, nullptr);
    arena.check();
    result = download(gradient, {rows, vocab});
  });
  return result;
}

} // namespace

PYBIND11_MODULE(cuda_emulator_rows, m) {
  m.def("divergence", &divergence);
  m.def("divergence_backward", &divergence_backward);
  m.def("selected_log_probs", &selected_log_probs);
  m.def("selected_log_probs_backward", &selected_log_probs_backward);
}
