// The beam CRF kernels' host launchers on NumPy arrays; see module.cpp.
#include "beam_crf_gradient.cuh"
#include "beam_crf_viterbi.cuh"
#include "bindings.h"

namespace {

// The arguments that all beam CRF launchers begin with. The factors are float64 with float64
// emissions; `dynamic` and `targets` may be None.
struct BeamGiven {
  py::array emissions, mask, left, right;
  int64_t beam;
  py::object dynamic, targets;
  std::string type;
  unsigned seed;
  int64_t budget_bytes;

  int64_t batch() const { return emissions.shape(0); }
  int64_t time() const { return emissions.shape(1); }
  int64_t vocab() const { return emissions.shape(2); }
  int64_t rank() const { return left.shape(1); }

  template <class T, class Real> pc::BeamBatch<T, Real> view(Arena& arena) const {
    const pc::CrfBatch<T> rows{arena.input<T>(emissions, "emissions"), time() * vocab(), vocab(),
                               arena.input<bool>(mask, "mask"),        batch(),          time()};
    const Real* matrices =
        dynamic.is_none() ? nullptr : arena.input<Real>(py::array(dynamic), "dynamic");
    return {rows,
            vocab(),
            rank(),
            beam,
            arena.input<Real>(left, "left"),
            arena.input<Real>(right, "right"),
            matrices};
  }
  const int64_t* wanted(Arena& arena) const {
    return targets.is_none() ? nullptr : arena.input<int64_t>(py::array(targets), "targets");
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

// log_z, the score of the targets where there are any, and the candidates.
py::tuple beam_crf_log_partition(const BeamGiven& in) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    const int64_t scored = in.targets.is_none() ? 0 : in.batch();
    const pc::BeamLogPartition<Real> found{
        in.wanted(arena), arena.scratch<Real>(in.batch(), "log_z"),
        arena.scratch<Real>(scored, "score"),
        arena.scratch<int32_t>(in.batch() * in.time() * in.beam, "candidates")};
    pc::beam_crf_log_partition(in.view<T, Real>(arena), found, scratch, nullptr, in.budget_bytes);
    result = py::make_tuple(download(found.log_z, {in.batch()}), download(found.score, {scored}),
                            download(found.candidates, {in.batch(), in.time(), in.beam}));
  });
  return result;
}

// Gradients of the emissions (as bits), left, right, and the matrices where there are any.
py::tuple beam_crf_log_partition_backward(const BeamGiven& in, const py::array& candidates,
                                          const py::array& of_log_z, const py::array& of_score) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto view = in.view<T, Real>(arena);
    view.candidates = arena.input<int32_t>(candidates, "candidates");
    const int64_t batch = in.batch(), time = in.time(), vocab = in.vocab(), rank = in.rank();
    const int64_t steps = std::max<int64_t>(time - 1, 0);
    const bool dynamic = !in.dynamic.is_none();
    const pc::BeamGradient<T, Real> gradient{
        arena.input<Real>(of_log_z, "of_log_z"),
        in.targets.is_none() ? nullptr : arena.input<Real>(of_score, "of_score"),
        in.wanted(arena),
        arena.scratch<T>(batch * time * vocab, "of_emissions"),
        arena.scratch<Real>(vocab * rank, "of_left"),
        arena.scratch<Real>(vocab * rank, "of_right"),
        dynamic ? arena.scratch<Real>(batch * steps * rank * rank, "of_dynamic") : nullptr};
    pc::beam_crf_log_partition_backward(view, gradient, scratch, nullptr, in.budget_bytes);
    result = py::make_tuple(
        download(gradient.emissions, {batch, time, vocab}), download(gradient.left, {vocab, rank}),
        download(gradient.right, {vocab, rank}),
        download(gradient.dynamic, {dynamic ? batch : 0, dynamic ? steps : 0, rank, rank}));
  });
  return result;
}

py::tuple beam_crf_viterbi(const BeamGiven& in) {
  py::tuple result;
  in.run([&](auto element, auto real, Arena& arena, ArenaScratch& scratch) {
    using T = decltype(element);
    using Real = decltype(real);
    auto* paths = arena.scratch<int64_t>(in.batch() * in.time(), "paths");
    auto* scores = arena.scratch<Real>(in.batch(), "scores");
    pc::beam_crf_viterbi(in.view<T, Real>(arena), paths, scores, scratch, nullptr, in.budget_bytes);
    result =
        py::make_tuple(download(paths, {in.batch(), in.time()}), download(scores, {in.batch()}));
  });
  return result;
}

} // namespace

PYBIND11_MODULE(cuda_emulator_beam, m) {
  using Array = const py::array&;
  using Optional = const py::object&;
  py::class_<BeamGiven>(m, "Beam").def(py::init(
      [](Array emissions, Array mask, Array left, Array right, int64_t beam, Optional dynamic,
         Optional targets, const std::string& type, unsigned seed, int64_t budget_bytes) {
        return BeamGiven{emissions, mask,    left, right, beam,
                         dynamic,   targets, type, seed,  budget_bytes};
      }));
  m.def("beam_crf_log_partition", &beam_crf_log_partition);
  m.def("beam_crf_log_partition_backward", &beam_crf_log_partition_backward);
  m.def("beam_crf_viterbi", &beam_crf_viterbi);
}
