#include <tuple>

#include "common/rows.h"
#include "divergence.cuh"

namespace petkit::cuda {
namespace {

void check_pair(const Tensor& student, const Tensor& teacher, const Tensor& mask, double beta,
                double temperature) {
  check_logits(student, "student_logits");
  check_dimensions(teacher, "teacher_logits", 2);
  check_shape(teacher, "teacher_logits", {student.size(0), student.size(1)});
  check_row_mask(mask, student);
  STD_TORCH_CHECK(beta >= 0 && beta <= 1, "beta must lie between 0 and 1, got ", beta);
  check_temperature(temperature);
}

// Calls with the element types of student and teacher.
template <class Call> void dispatch_pair(const Tensor& student, const Tensor& teacher, Call call) {
  dispatch_type(student.scalar_type(), "student_logits", [&](auto a) {
    dispatch_type(teacher.scalar_type(), "teacher_logits", [&](auto b) { call(a, b); });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> divergences(const Tensor student, const Tensor teacher,
                                                       const Tensor mask, double beta,
                                                       double temperature) {
  check_pair(student, teacher, mask, beta, temperature);
  const OnDevice device(student, {{"teacher_logits", &teacher}, {"mask", &mask}});
  const Tensor a = torch::stable::contiguous(student), b = torch::stable::contiguous(teacher);
  const Tensor kept = torch::stable::contiguous(mask);
  const int64_t rows = a.size(0), vocab = a.size(1);
  const auto column = [&] { return new_tensor(a, std::array{rows}, ScalarType::Float); };
  const Tensor loss = column(), forward_kl = column(), reverse_kl = column();
  const Tensor statistics = new_tensor(a, std::array{rows, statistics_width}, ScalarType::Float);
  const DivergenceSettings settings{row_mask(kept), beta, temperature};
  const DivergenceResults results{output<float>(loss), output<float>(forward_kl),
                                  output<float>(reverse_kl), output<float>(statistics)};
  dispatch_pair(a, b, [&](auto of_a, auto of_b) {
    using A = typename decltype(of_a)::type;
    using B = typename decltype(of_b)::type;
    divergence<A, B>(input<A>(a), input<B>(b), settings, results, rows, vocab, device.stream());
  });
  return {loss, forward_kl, reverse_kl, statistics};
}

// `target` may be the student's logits, which are contiguous.
void write_gradient(const Tensor& student, const Tensor& teacher, const Tensor& mask,
                    const Tensor& statistics, const Tensor& upstream, double beta,
                    double temperature, const Tensor& target) {
  check_pair(student, teacher, mask, beta, temperature);
  const int64_t rows = student.size(0), vocab = student.size(1);
  check_float32(statistics, "statistics");
  check_shape(statistics, "statistics", {rows, statistics_width});
  check_float32(upstream, "upstream");
  check_shape(upstream, "upstream", {rows});
  const OnDevice device(student, {{"teacher_logits", &teacher},
                                  {"mask", &mask},
                                  {"statistics", &statistics},
                                  {"upstream", &upstream}});
  const Tensor b = torch::stable::contiguous(teacher), kept = torch::stable::contiguous(mask);
  const Tensor sums = torch::stable::contiguous(statistics);
  const Tensor rise = torch::stable::contiguous(upstream);
  const DivergenceSettings settings{row_mask(kept), beta, temperature};
  dispatch_pair(student, b, [&](auto of_a, auto of_b) {
    using A = typename decltype(of_a)::type;
    using B = typename decltype(of_b)::type;
    divergence_backward<A, B>(input<A>(student), input<B>(b), input<float>(sums),
                              input<float>(rise), settings, output<A>(target), rows, vocab,
                              device.stream());
  });
}

Tensor pair_backward(const Tensor student, const Tensor teacher, const Tensor mask,
                     const Tensor statistics, const Tensor upstream, double beta,
                     double temperature) {
  const Tensor dense = torch::stable::contiguous(student);
  const Tensor gradient = torch::stable::empty_like(dense);
  write_gradient(dense, teacher, mask, statistics, upstream, beta, temperature, gradient);
  return gradient;
}

void pair_backward_(const Tensor student, const Tensor teacher, const Tensor mask,
                    const Tensor statistics, const Tensor upstream, double beta,
                    double temperature) {
  check_overwritable(student, "student_logits");
  write_gradient(student, teacher, mask, statistics, upstream, beta, temperature, student);
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("divergence", TORCH_BOX(&petkit::cuda::divergences));
  m.impl("divergence_backward", TORCH_BOX(&petkit::cuda::pair_backward));
  m.impl("divergence_backward_", TORCH_BOX(&petkit::cuda::pair_backward_));
}
