// The CRF kernels' host launchers on NumPy arrays; see module.cpp.
#include "bindings.h"
#include "crf_gradient.cuh"
#include "crf_kbest.cuh"
#include "crf_sample.cuh"
#include "crf_viterbi.cuh"

namespace {

// The arguments that all CRF launchers begin with. The parameters are float64 with float64
// emissions.
struct CrfGiven {
  py::array emissions, mask, transitions, start, end;
  std::string type;
  unsigned seed;

  int64_t batch() const { return emissions.shape(0); }
  int64_t time() const { return emissions.shape(1); }
  int64_t tags() const { return emissions.shape(2); }

  template <class T> pc::CrfBatch<T> rows(Arena& arena) const {
    return {arena.input<T>(emissions, "emissions"), time() * tags(), tags(),
            arena.input<bool>(mask, "mask"),        batch(),         time()};
  }
  template <class Real> pc::CrfModel<Real> model(Arena& arena) const {
    return {tags(), arena.input<Real>(transitions, "transitions"),
            arena.input<Real>(start, "start"), arena.input<Real>(end, "end")};
  }

  // Calls with T(), Real(), an arena and its scratch, and looks for writes outside the buffers.
  template <class Call> void run(Call call) const {
    emulator::machine.seed = seed;
    Arena arena;
    ArenaScratch scratch(arena);
    if (type == "float64")
      call(double{}, double{}, arena, scratch);
    else
      dispatch_type(type, [&](auto element) { call(element, float{}, arena, scratch); });
    arena.check();
  }
};

py::array crf_log_partition(const CrfGiven& in) {
  py::array result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* log_z = arena.scratch<Real>(in.batch(), "log_z");
    pc::crf_log_partition(in.model<Real>(arena), in.rows<T>(arena), log_z, scratch, nullptr);
    result = download(log_z, {in.batch()});
  });
  return result;
}

// Gradients of the emissions (as bits), the transitions, the start and the end.
py::tuple crf_log_partition_backward(const CrfGiven& in, const py::array& grad) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    const int64_t tags = in.tags(), count = in.batch() * in.time() * tags;
    const pc::CrfGradient<T, Real> gradient{
        arena.input<Real>(grad, "grad"), arena.scratch<T>(count, "grad_emissions"),
        arena.scratch<Real>(tags * tags, "grad_transitions"),
        arena.scratch<Real>(tags, "grad_start"), arena.scratch<Real>(tags, "grad_end")};
    pc::crf_log_partition_backward(in.model<Real>(arena), in.rows<T>(arena), gradient, scratch,
                                   nullptr);
    result = py::make_tuple(download(gradient.emissions, {in.batch(), in.time(), tags}),
                            download(gradient.transitions, {tags, tags}),
                            download(gradient.start, {tags}), download(gradient.end, {tags}));
  });
  return result;
}

py::tuple crf_viterbi(const CrfGiven& in) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* paths = arena.scratch<int64_t>(in.batch() * in.time(), "paths");
    auto* scores = arena.scratch<Real>(in.batch(), "scores");
    pc::crf_viterbi(in.model<Real>(arena), in.rows<T>(arena), paths, scores, scratch, nullptr);
    result =
        py::make_tuple(download(paths, {in.batch(), in.time()}), download(scores, {in.batch()}));
  });
  return result;
}

// Marginals, expected scores of the transitions, and log_z.
py::tuple crf_marginals(const CrfGiven& in) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* marginals = arena.scratch<Real>(in.batch() * in.time() * in.tags(), "marginals");
    auto *scores = arena.scratch<Real>(in.batch(), "scores"),
         *log_z = arena.scratch<Real>(in.batch(), "log_z");
    pc::crf_marginals(in.model<Real>(arena), in.rows<T>(arena), marginals, scores, log_z, scratch,
                      nullptr);
    result = py::make_tuple(download(marginals, {in.batch(), in.time(), in.tags()}),
                            download(scores, {in.batch()}), download(log_z, {in.batch()}));
  });
  return result;
}

// Paths (samples, batch, time), and log_z.
py::tuple crf_sample(const CrfGiven& in, const py::array& uniforms) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* samples = arena.scratch<int64_t>(uniforms.size(), "samples");
    auto* log_z = arena.scratch<Real>(in.batch(), "log_z");
    pc::crf_sample(in.model<Real>(arena), in.rows<T>(arena),
                   arena.input<double>(uniforms, "uniforms"), uniforms.shape(0), samples, log_z,
                   scratch, nullptr);
    result = py::make_tuple(download(samples, {uniforms.shape(0), in.batch(), in.time()}),
                            download(log_z, {in.batch()}));
  });
  return result;
}

// Paths (batch, k, time) and scores (batch, k).
py::tuple crf_kbest(const CrfGiven& in, int64_t k, int64_t pointer_bytes) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* paths = arena.scratch<int64_t>(in.batch() * k * in.time(), "paths");
    auto* scores = arena.scratch<Real>(in.batch() * k, "scores");
    pc::crf_kbest(in.model<Real>(arena), in.rows<T>(arena), k, paths, scores, scratch, nullptr,
                  pointer_bytes);
    result = py::make_tuple(download(paths, {in.batch(), k, in.time()}),
                            download(scores, {in.batch(), k}));
  });
  return result;
}

} // namespace

PYBIND11_MODULE(cuda_emulator_crf, m) {
  using Array = const py::array&;
  py::class_<CrfGiven>(m, "Crf").def(
      py::init([](Array emissions, Array mask, Array transitions, Array start, Array end,
                  const std::string& type, unsigned seed) {
        return CrfGiven{emissions, mask, transitions, start, end, type, seed};
      }));
  m.def("crf_log_partition", &crf_log_partition);
  m.def("crf_log_partition_backward", &crf_log_partition_backward);
  m.def("crf_viterbi", &crf_viterbi);
  m.def("crf_marginals", &crf_marginals);
  m.def("crf_kbest", &crf_kbest);
  m.def("crf_sample", &crf_sample);
}
