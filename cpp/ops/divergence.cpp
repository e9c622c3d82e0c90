// divergence on the CPU: Kullback-Leibler and Jensen-Shannon divergences between rows of logits,
// and their gradient in the student's, which may take the place of those logits.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "operator.h"

namespace petkit {
namespace {

// Logits of both rows in float32 share the first-level cache.
constexpr int64_t pair_block = 2048;
constexpr int64_t grain_pairs = 1 << 14; // pairs of logits worth a thread's while
// Of each row: both maxima, both sums of powers, and what the gradient is centred on.
constexpr int64_t statistics_width = 5;

// Which divergence `beta` names; see petkit/ops/divergence.py.
enum class Kind { forward, reverse, mixture };

Kind kind_of(double beta) {
  return beta == 0 ? Kind::forward : beta == 1 ? Kind::reverse : Kind::mixture;
}

void check_pair(const Tensor& student, const Tensor& teacher, const Tensor& mask, double beta,
                double temperature) {
  check_rank(student, "student_logits", 2);
  check_rank(teacher, "teacher_logits", 2);
  STD_TORCH_CHECK(student.size(1) > 0, "student_logits must have a vocabulary, got 0 columns");
  STD_TORCH_CHECK(student.size(0) == teacher.size(0) && student.size(1) == teacher.size(1),
                  "teacher_logits must be (", student.size(0), ", ", student.size(1),
                  ") as student_logits are, got (", teacher.size(0), ", ", teacher.size(1), ")");
  check_dtype(mask, "mask", ScalarType::Bool);
  STD_TORCH_CHECK(mask.numel() == 0 || mask.numel() == student.size(0),
                  "mask must hold one value for each of ", student.size(0), " rows, got ",
                  mask.numel());
  STD_TORCH_CHECK(beta >= 0 && beta <= 1, "beta must lie between 0 and 1, got ", beta);
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature),
                  "temperature must be positive, got ", temperature);
}

// The rows of one call, block by block; each thread has its own.
class PairRows {
public:
  PairRows(const Tensor& student, const Tensor& teacher, double temperature)
      : student_(student, "student_logits"), teacher_(teacher, "teacher_logits"),
        vocab_(student.size(1)), pair_{0, 0, float(log2_e / temperature)} {}

  // Calls f(first column, count, student's logits, teacher's).
  template <class F> void over(int64_t row, const F& f) {
    for (int64_t first = 0; first < vocab_; first += pair_block) {
      const int64_t count = std::min(pair_block, vocab_ - first), at = row * vocab_ + first;
      const float* a = student_.read(at, count, student_buffer_);
      f(first, count, a, teacher_.read(at, count, teacher_buffer_));
    }
  }
  void find_maxima(int64_t row) {
    pair_.maximum_a = pair_.maximum_b = -INFINITY;
    over(row, [&](int64_t, int64_t count, const float* a, const float* b) {
      pair_.maximum_a = std::max(pair_.maximum_a, kernels().divergence.highest(a, count));
      pair_.maximum_b = std::max(pair_.maximum_b, kernels().divergence.highest(b, count));
    });
  }
  void set_maxima(const float* statistics) {
    pair_.maximum_a = statistics[0];
    pair_.maximum_b = statistics[1];
  }
  PairSums sums(int64_t row) {
    PairSums all{0, 0, 0, 0};
    over(row, [&](int64_t, int64_t count, const float* a, const float* b) {
      const PairSums part = kernels().divergence.sums(pair_, a, b, count);
      all.a += part.a, all.b += part.b;
      all.a_cross += part.a_cross, all.b_cross += part.b_cross;
    });
    return all;
  }
  MixtureSums mixture(int64_t row, double share) {
    MixtureSums all{0, 0};
    over(row, [&](int64_t, int64_t count, const float* a, const float* b) {
      const MixtureSums part = kernels().divergence.mixture(pair_, float(share), a, b, count);
      all.a += part.a, all.b += part.b;
    });
    return all;
  }
  const LogitPair& pair() const { return pair_; }

private:
  Source student_, teacher_;
  int64_t vocab_;
  LogitPair pair_;
  float student_buffer_[pair_block], teacher_buffer_[pair_block];
};

// The share of the teacher's powers in the mixture, relative to the student's.
double mixture_share(double beta, double sum_a, double sum_b) {
  return beta / (1 - beta) * sum_a / sum_b;
}

struct RowDivergence {
  double loss, forward, reverse;
};

// Fills the row's statistics too.
RowDivergence divergence_of(PairRows& rows, int64_t row, double beta, float* statistics) {
  rows.find_maxima(row);
  const PairSums sums = rows.sums(row);
  const double apart = std::log(sums.a) - std::log(sums.b);
  const double against = ln2 * sums.a_cross / sums.a;
  const double forward = ln2 * sums.b_cross / sums.b + apart, reverse = against - apart;
  double loss = forward, centre = 0;
  if (kind_of(beta) == Kind::reverse) {
    loss = reverse, centre = against;
  } else if (kind_of(beta) == Kind::mixture) {
    const MixtureSums mixed = rows.mixture(row, mixture_share(beta, sums.a, sums.b));
    centre = mixed.a / sums.a;
    const double outer = -std::log1p(-beta);
    loss = beta * (mixed.b / sums.b + apart + outer) + (1 - beta) * (centre + outer);
  }
  statistics[0] = rows.pair().maximum_a, statistics[1] = rows.pair().maximum_b;
  statistics[2] = float(sums.a), statistics[3] = float(sums.b), statistics[4] = float(centre);
  return {loss, forward, reverse};
}

int64_t row_grain(int64_t vocab) { return std::max<int64_t>(1, grain_pairs / vocab); }

const bool* given(const Tensor& mask) {
  return mask.numel() == 0 ? nullptr : static_cast<const bool*>(mask.const_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> divergence(const Tensor student_, const Tensor teacher_,
                                                      const Tensor mask_, double beta,
                                                      double temperature) {
  check_pair(student_, teacher_, mask_, beta, temperature);
  const Tensor student = torch::stable::contiguous(student_);
  const Tensor teacher = torch::stable::contiguous(teacher_);
  const Tensor mask = torch::stable::contiguous(mask_);
  const int64_t rows = student.size(0), vocab = student.size(1);
  const bool* wanted = given(mask);
  const std::array<int64_t, 1> column{rows};
  const Tensor loss = torch::stable::new_empty(student, column, ScalarType::Float);
  const Tensor forward = torch::stable::new_empty(student, column, ScalarType::Float);
  const Tensor reverse = torch::stable::new_empty(student, column, ScalarType::Float);
  const Tensor statistics = torch::stable::new_empty(
      student, std::array<int64_t, 2>{rows, statistics_width}, ScalarType::Float);
  const auto out = [](const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); };
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    PairRows reader(student, teacher, temperature);
    for (int64_t r = begin; r < end; ++r) {
      float* own = out(statistics) + r * statistics_width;
      RowDivergence found{0, 0, 0};
      if (wanted == nullptr || wanted[r])
        found = divergence_of(reader, r, beta, own);
      else
        std::fill_n(own, statistics_width, 0.0f);
      out(loss)[r] = float(found.loss);
      out(forward)[r] = float(found.forward);
      out(reverse)[r] = float(found.reverse);
    }
  });
  return {loss, forward, reverse, statistics};
}

// What one row's gradient is made of; `upstream` is that of its loss.
DivergenceSlope slope_of(double beta, double temperature, const float* statistics,
                         double upstream) {
  const double sum_a = statistics[2], sum_b = statistics[3], rise = upstream / temperature;
  if (kind_of(beta) == Kind::forward)
    return {float(rise / sum_a), float(rise / sum_b), 0};
  const double weight = kind_of(beta) == Kind::reverse ? 1 : 1 - beta;
  const double share = kind_of(beta) == Kind::reverse ? 0 : mixture_share(beta, sum_a, sum_b);
  return {float(weight * rise / sum_a), statistics[4], float(share)};
}

// Writes the gradient of all rows to `target`, which may be the student's logits.
void write_gradient(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                    const Tensor& statistics, const Tensor& upstream, double beta,
                    double temperature, const Tensor& target) {
  const int64_t rows = student.size(0), vocab = student.size(1);
  STD_TORCH_CHECK(statistics.numel() == rows * statistics_width && upstream.numel() == rows,
                  "statistics and upstream must belong to ", rows, " rows, got ",
                  statistics.numel(), " and ", upstream.numel(), " values");
  check_dtype(statistics, "statistics", ScalarType::Float);
  check_dtype(upstream, "upstream", ScalarType::Float);
  const bool* wanted = given(mask);
  const Sink sink(target);
  const DivergenceKernels& kernel = kernels().divergence;
  const auto write = kind_of(beta) == Kind::forward   ? kernel.apart
                     : kind_of(beta) == Kind::reverse ? kernel.against
                                                      : kernel.mixed;
  torch::stable::parallel_for(0, rows, row_grain(vocab), [&](int64_t begin, int64_t end) {
    PairRows reader(student, teacher, temperature);
    float buffer[pair_block];
    const auto fill = [&](int64_t row, float value) {
      for (int64_t first = 0; first < vocab; first += pair_block) {
        const int64_t at = row * vocab + first, count = std::min(pair_block, vocab - first);
        float* out = sink.place(at, buffer);
        std::fill_n(out, count, value);
        sink.write(at, count, out);
      }
    };
    for (int64_t r = begin; r < end; ++r) {
      const float* own = floats(statistics) + r * statistics_width;
      if (wanted != nullptr && !wanted[r]) {
        fill(r, 0);
        continue;
      }
      // Beside a +infinity every other token is impossible, but no less unknown.
      if (std::isnan(own[2]) || std::isnan(own[3])) {
        fill(r, NAN);
        continue;
      }
      const DivergenceSlope slope = slope_of(beta, temperature, own, floats(upstream)[r]);
      reader.set_maxima(own);
      reader.over(r, [&](int64_t first, int64_t count, const float* a, const float* b) {
        float* out = sink.place(r * vocab + first, buffer);
        write(reader.pair(), slope, a, b, count, out);
        sink.write(r * vocab + first, count, out);
      });
    }
  });
}

Tensor divergence_backward(const Tensor student_, const Tensor teacher_, const Tensor mask_,
                           const Tensor statistics, const Tensor upstream, double beta,
                           double temperature) {
  check_pair(student_, teacher_, mask_, beta, temperature);
  const Tensor student = torch::stable::contiguous(student_);
  const Tensor gradient = torch::stable::new_empty(student, student.sizes());
  write_gradient(student, torch::stable::contiguous(teacher_), torch::stable::contiguous(mask_),
                 torch::stable::contiguous(statistics), torch::stable::contiguous(upstream), beta,
                 temperature, gradient);
  return gradient;
}

void divergence_backward_(const Tensor student, const Tensor teacher_, const Tensor mask_,
                          const Tensor statistics, const Tensor upstream, double beta,
                          double temperature) {
  check_pair(student, teacher_, mask_, beta, temperature);
  STD_TORCH_CHECK(student.is_contiguous(), "student_logits must be contiguous to be overwritten");
  write_gradient(student, torch::stable::contiguous(teacher_), torch::stable::contiguous(mask_),
                 torch::stable::contiguous(statistics), torch::stable::contiguous(upstream), beta,
                 temperature, student);
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("divergence", TORCH_BOX(&petkit::divergence));
  m.impl("divergence_backward", TORCH_BOX(&petkit::divergence_backward));
  m.impl("divergence_backward_", TORCH_BOX(&petkit::divergence_backward_));
}
