// beam_crf_log_partition on the CPU, with the score of the targets, and the gradient of both.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "beam_crf.h"

namespace petkit {
namespace {

using Scores = std::tuple<Tensor, Tensor, Tensor>;

// The targets at the set positions of a row.
template <class Real>
void read_targets(const BeamTensors& in, const BeamRow<Real>& row, int64_t b, int64_t* path) {
  for (int64_t i = 0; i < row.length(); ++i)
    path[i] = in.target(b, row.positions[size_t(i)]);
}

template <class Real> Scores log_partition(const BeamTensors& in) {
  const BeamFactors<Real> factors = beam_factors<Real>(in);
  const auto fresh = [&](int64_t size) {
    return torch::stable::new_empty(in.left, std::array<int64_t, 1>{size});
  };
  const Tensor log_z = fresh(in.batch), score = fresh(in.has_targets() ? in.batch : 0);
  const Tensor candidates = torch::stable::new_empty(
      in.mask, std::array<int64_t, 3>{in.batch, in.time, in.beam}, ScalarType::Int);
  std::fill(crf_out<Real>(log_z), crf_out<Real>(log_z) + in.batch, Real(0));
  std::fill(crf_out<Real>(score), crf_out<Real>(score) + score.numel(), Real(0));
  if (in.time == 0)
    return {log_z, score, candidates};
  const std::vector<int64_t> order = by_length(in);
  const int64_t slots = std::min<int64_t>(in.batch, 64);
  over_slots(slots, [&](int64_t slot) {
    BeamRow<Real> row(in, factors);
    std::vector<int64_t> path(size_t(in.time));
    for (int64_t i = slot; i < in.batch; i += slots) {
      const int64_t b = order[size_t(i)];
      const bool numbers = row.find(b, crf_out<int32_t>(candidates) + b * in.time * in.beam);
      const double found = numbers ? beam_kernels<Real>().forward(factors, row.sequence(),
                                                                  row.forward(), row.scratch())
                                   : std::nan("");
      crf_out<Real>(log_z)[b] = Real(found);
      if (!in.has_targets())
        continue;
      read_targets(in, row, b, path.data());
      crf_out<Real>(score)[b] = Real(numbers ? row.score(factors, path.data()) : found);
    }
  });
  return {log_z, score, candidates};
}

Scores beam_crf_log_partition(const Tensor emissions, const Tensor mask, const Tensor left,
                              const Tensor right, const Tensor dynamic, const Tensor targets,
                              int64_t beam) {
  const BeamTensors in(emissions, mask, left, right, dynamic, targets, beam);
  return with_crf_type(emissions, [&](auto real) { return log_partition<decltype(real)>(in); });
}

// Gradients of the factors at the candidates of some sequences, before they are added up.
template <class Real> struct FactorRows {
  std::vector<Real> left, right;       // (length, beam, rank_stride)
  std::vector<int32_t> candidates;     // (length, beam)
  std::vector<int64_t> targets;        // of the set positions
  std::vector<Real> of_left, of_right; // (length, rank), gradients of the score at the targets
  int64_t length = 0;
};

// What the gradient of a batch needs; rows are worked on in waves, so that the rows of factors that
// wait to be added stay few.
template <class Real> class BeamGradients {
public:
  BeamGradients(const BeamTensors& in, const Tensor& candidates, const Real* of_log_z,
                const Real* of_score)
      : in_(in), factors_(beam_factors<Real>(in)),
        candidates_(static_cast<const int32_t*>(candidates.const_data_ptr())), of_log_z_(of_log_z),
        of_score_(of_score) {
    const auto zeros = [](const Tensor& like) {
      Tensor fresh = torch::stable::new_empty(like, like.sizes());
      std::memset(fresh.mutable_data_ptr(), 0, size_t(fresh.numel() * element_bytes(fresh)));
      return fresh;
    };
    emissions =
        torch::stable::new_empty(in.emissions, std::array<int64_t, 3>{in.batch, in.time, in.vocab});
    prefer_huge_pages(emissions, emissions.numel() * element_bytes(emissions));
    left = zeros(in.left), right = zeros(in.right), dynamic = zeros(in.dynamic);
  }

  void run() {
    if (in_.time == 0)
      return;
    const std::vector<int64_t> order = by_length(in_);
    const int64_t wave = wave_rows();
    std::vector<FactorRows<Real>> rows(static_cast<size_t>(wave));
    for (int64_t first = 0; first < in_.batch; first += wave) {
      const int64_t count = std::min(wave, in_.batch - first);
      const int64_t slots = std::min<int64_t>(count, 64);
      over_slots(slots, [&](int64_t slot) {
        BeamRow<Real> row(in_, factors_);
        for (int64_t i = slot; i < count; i += slots)
          work(order[size_t(first + i)], row, rows[size_t(i)]);
      });
      rows.resize(size_t(count));
      add_up(rows);
    }
  }

  Tensor emissions, left, right, dynamic;

private:
  int64_t wave_rows() const {
    const int64_t bytes = in_.time * in_.beam * factors_.rank_stride() * 2 * int64_t(sizeof(Real));
    const int64_t allowed = int64_t(torch::stable::get_num_threads()) * bytes_a_thread;
    return std::min(std::max<int64_t>(1, allowed / std::max<int64_t>(1, bytes)),
                    std::max<int64_t>(1, in_.batch));
  }

  void work(int64_t b, BeamRow<Real>& row, FactorRows<Real>& rows) {
    char* target = static_cast<char*>(emissions.mutable_data_ptr()) +
                   b * in_.time * in_.vocab * element_bytes(emissions);
    std::memset(target, 0, size_t(in_.time * in_.vocab * element_bytes(emissions)));
    rows.length = 0;
    // Whatever a row holds that does not count, nan too, adds nothing.
    if (of_log_z_[b] == 0 && (!in_.has_targets() || of_score_[b] == 0))
      return;
    row.read(b, candidates_ + b * in_.time * in_.beam);
    rows.length = row.length();
    const size_t size = size_t(row.length() * in_.beam * factors_.rank_stride());
    rows.left.resize(size), rows.right.resize(size);
    std::vector<Real> unary(size_t(row.length() * factors_.stride()));
    std::vector<Real*> matrices = dynamic_rows(b, row);
    const BeamGradient<Real> gradient{double(of_log_z_[b]), unary.data(), rows.left.data(),
                                      rows.right.data(), matrices.data()};
    const double log_z =
        beam_kernels<Real>().forward(factors_, row.sequence(), row.forward(), row.scratch());
    beam_kernels<Real>().backward(factors_, row.sequence(), row.forward(), log_z, gradient,
                                  row.scratch());
    keep_candidates(row, rows);
    if (in_.has_targets())
      add_targets(b, row, rows, matrices);
    write_emissions(b, row, rows, unary, target);
  }

  std::vector<Real*> dynamic_rows(int64_t b, const BeamRow<Real>& row) {
    std::vector<Real*> matrices(size_t(row.length()), nullptr);
    const int64_t matrix = in_.rank * in_.rank;
    for (int64_t i = 1; i < row.length() && in_.is_dynamic(); ++i)
      matrices[size_t(i)] =
          crf_out<Real>(dynamic) + (b * (in_.time - 1) + row.positions[size_t(i)] - 1) * matrix;
    return matrices;
  }
  void keep_candidates(const BeamRow<Real>& row, FactorRows<Real>& rows) const {
    rows.candidates.resize(size_t(row.length() * in_.beam));
    for (int64_t i = 0; i < row.length(); ++i)
      for (int64_t j = 0; j < in_.beam; ++j)
        rows.candidates[size_t(i * in_.beam + j)] = row.candidate(i, j);
  }

  // The gradient of the score of the targets: left[a] D right[b] for each step.
  void add_targets(int64_t b, const BeamRow<Real>& row, FactorRows<Real>& rows,
                   const std::vector<Real*>& matrices) const {
    const int64_t rank = in_.rank;
    const Real weight = of_score_[b];
    rows.targets.resize(size_t(row.length()));
    read_targets(in_, row, b, rows.targets.data());
    rows.of_left.assign(size_t(row.length() * rank), 0);
    rows.of_right.assign(size_t(row.length() * rank), 0);
    for (int64_t i = 1; i < row.length(); ++i) {
      const Real* from = factors_.left + rows.targets[size_t(i - 1)] * rank;
      const Real* to = factors_.right + rows.targets[size_t(i)] * rank;
      Real *of_from = &rows.of_left[size_t((i - 1) * rank)],
           *of_to = &rows.of_right[size_t(i * rank)];
      const Real* matrix = row.matrix(i);
      for (int64_t k = 0; k < rank; ++k) {
        if (!matrix) {
          of_from[k] += weight * to[k], of_to[k] += weight * from[k];
          continue;
        }
        for (int64_t m = 0; m < rank; ++m) {
          of_from[k] += weight * matrix[k * rank + m] * to[m];
          of_to[m] += weight * matrix[k * rank + m] * from[k];
          matrices[size_t(i)][k * rank + m] += weight * from[k] * to[m];
        }
      }
    }
  }

  void write_emissions(int64_t b, const BeamRow<Real>& row, const FactorRows<Real>& rows,
                       std::vector<Real>& unary, char* target) const {
    const int64_t item = element_bytes(emissions), stride = factors_.stride();
    const DType dtype = crf_dtype<Real>(emissions, "emissions");
    const auto write = [&](Real value, char* place) {
      if constexpr (sizeof(Real) == sizeof(double))
        std::memcpy(place, &value, sizeof value);
      else
        kernels().from_float(&value, dtype, place, 1);
    };
    for (int64_t i = 0; i < row.length(); ++i) {
      char* out = target + row.positions[size_t(i)] * in_.vocab * item;
      for (int64_t j = 0; j < in_.beam; ++j) {
        Real& value = unary[size_t(i * stride + j)];
        const int64_t candidate = row.candidate(i, j);
        // The targets are among the candidates.
        if (in_.has_targets() && candidate == rows.targets[size_t(i)])
          value += of_score_[b];
        write(value, out + candidate * item);
      }
    }
  }

  // Each thread adds the rows of its part of the vocabulary, in the order of sequences and steps:
  // the sums do not depend on the number of threads.
  void add_up(const std::vector<FactorRows<Real>>& rows) {
    const int64_t parts = int64_t(torch::stable::get_num_threads());
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      const int64_t low = in_.vocab * begin / parts, high = in_.vocab * end / parts;
      for (const FactorRows<Real>& one : rows)
        add_up(one, low, high);
    });
  }
  void add_up(const FactorRows<Real>& rows, int64_t low, int64_t high) {
    Real *of_left = crf_out<Real>(left), *of_right = crf_out<Real>(right);
    const int64_t rank = in_.rank, rank_stride = factors_.rank_stride();
    const auto add = [&](const Real* x, Real* out) {
      for (int64_t k = 0; k < rank; ++k)
        out[k] += x[k];
    };
    for (int64_t i = 0; i < rows.length * in_.beam; ++i) {
      const int64_t entry = rows.candidates[size_t(i)];
      if (entry < low || entry >= high)
        continue;
      add(&rows.left[size_t(i * rank_stride)], of_left + entry * rank);
      add(&rows.right[size_t(i * rank_stride)], of_right + entry * rank);
    }
    for (int64_t i = 0; i < rows.length && in_.has_targets(); ++i) {
      const int64_t entry = rows.targets[size_t(i)];
      if (entry < low || entry >= high)
        continue;
      add(&rows.of_left[size_t(i * rank)], of_left + entry * rank);
      add(&rows.of_right[size_t(i * rank)], of_right + entry * rank);
    }
  }

  static constexpr int64_t bytes_a_thread = 4 << 20;

  const BeamTensors& in_;
  BeamFactors<Real> factors_;
  const int32_t* candidates_;
  const Real *of_log_z_, *of_score_;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Real>
Gradients backward(const BeamTensors& in, const Tensor& candidates, const Tensor& of_log_z_,
                   const Tensor& of_score_) {
  const Tensor of_log_z = torch::stable::contiguous(of_log_z_),
               of_score = torch::stable::contiguous(of_score_);
  for (const Tensor& gradient : {of_log_z, of_score})
    check_dtype(gradient, "gradients", crf_scalar_type<Real>());
  CrfTensors::check_shape(of_log_z, "grad_log_z", {in.batch});
  CrfTensors::check_shape(of_score, "grad_score", {in.has_targets() ? in.batch : 0});
  BeamGradients<Real> gradients(in, candidates, crf_data<Real>(of_log_z), crf_data<Real>(of_score));
  gradients.run();
  return {gradients.emissions, gradients.left, gradients.right, gradients.dynamic};
}

Gradients beam_crf_log_partition_backward(const Tensor grad_log_z, const Tensor grad_score,
                                          const Tensor emissions, const Tensor mask,
                                          const Tensor left, const Tensor right,
                                          const Tensor dynamic, const Tensor targets,
                                          const Tensor candidates_) {
  const Tensor candidates = torch::stable::contiguous(candidates_);
  check_dtype(candidates, "candidates", ScalarType::Int);
  check_rank(candidates, "candidates", 3);
  const BeamTensors in(emissions, mask, left, right, dynamic, targets, candidates.size(2));
  CrfTensors::check_shape(candidates, "candidates", {in.batch, in.time, in.beam});
  const int32_t* ids = static_cast<const int32_t*>(candidates.const_data_ptr());
  for (int64_t b = 0; b < in.batch; ++b)
    for (int64_t t = 0; t < in.time; ++t)
      for (int64_t j = 0; j < in.beam && in.set(b, t); ++j) {
        const int64_t id = ids[(b * in.time + t) * in.beam + j];
        STD_TORCH_CHECK(id >= 0 && id < in.vocab, "candidates must lie between 0 and ",
                        in.vocab - 1, ", got ", id);
      }
  return with_crf_type(emissions, [&](auto real) {
    return backward<decltype(real)>(in, candidates, grad_log_z, grad_score);
  });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("beam_crf_log_partition", TORCH_BOX(&petkit::beam_crf_log_partition));
  m.impl("beam_crf_log_partition_backward", TORCH_BOX(&petkit::beam_crf_log_partition_backward));
}
