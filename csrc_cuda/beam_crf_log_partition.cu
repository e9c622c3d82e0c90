#include <tuple>

#include "beam_crf_gradient.cuh"
#include "beam_crf_operator.h"

namespace petkit::cuda {
namespace {

// Targets (batch, time), or of one dimension and empty.
Tensor beam_targets(const BeamArguments& in, const Tensor& targets) {
  if (targets.dim() == 2) {
    check_type(targets, "targets", ScalarType::Long, "int64");
    check_shape(targets, "targets", {in.batch, in.time});
  }
  return torch::stable::contiguous(targets);
}
const int64_t* beam_wanted(const Tensor& targets) {
  return targets.dim() == 2 ? input<int64_t>(targets) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> beam_log_partition(const Tensor emissions, const Tensor mask,
                                                      const Tensor left, const Tensor right,
                                                      const Tensor dynamic, const Tensor targets_,
                                                      int64_t beam) {
  const OnDevice device(emissions, {{"mask", &mask},
                                    {"left", &left},
                                    {"right", &right},
                                    {"dynamic", &dynamic},
                                    {"targets", &targets_}});
  const BeamArguments in(emissions, mask, left, right, dynamic, beam);
  const Tensor targets = beam_targets(in, targets_);
  const int64_t scored = targets.dim() == 2 ? in.batch : 0;
  const Tensor log_z = new_tensor(in.left, std::array{in.batch}, in.real());
  const Tensor score = new_tensor(in.left, std::array{scored}, in.real());
  const Tensor candidates =
      new_tensor(in.mask, std::array{in.batch, in.time, in.beam}, ScalarType::Int);
  TensorScratch scratch(in.left);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    const BeamLogPartition<Real> result{beam_wanted(targets), output<Real>(log_z),
                                        output<Real>(score), output<int32_t>(candidates)};
    beam_crf_log_partition(in.view<T, Real>(), result, scratch, device.stream());
  });
  return {log_z, score, candidates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
beam_log_partition_backward(const Tensor grad_log_z, const Tensor grad_score,
                            const Tensor emissions, const Tensor mask, const Tensor left,
                            const Tensor right, const Tensor dynamic, const Tensor targets_,
                            const Tensor candidates_) {
  const OnDevice device(emissions, {{"grad_log_z", &grad_log_z},
                                    {"grad_score", &grad_score},
                                    {"mask", &mask},
                                    {"left", &left},
                                    {"right", &right},
                                    {"dynamic", &dynamic},
                                    {"targets", &targets_},
                                    {"candidates", &candidates_}});
  check_dimensions(candidates_, "candidates", 3);
  check_type(candidates_, "candidates", ScalarType::Int, "int32");
  const BeamArguments in(emissions, mask, left, right, dynamic, candidates_.size(2));
  check_shape(candidates_, "candidates", {in.batch, in.time, in.beam});
  const Tensor targets = beam_targets(in, targets_);
  const bool scored = targets.dim() == 2;
  for (const auto& [name, grad] :
       {std::pair{"grad_log_z", &grad_log_z}, {"grad_score", &grad_score}})
    check_type(*grad, name, in.real(), "of the type of left");
  check_shape(grad_log_z, "grad_log_z", {in.batch});
  check_shape(grad_score, "grad_score", {scored ? in.batch : 0});
  const Tensor of_log_z = torch::stable::contiguous(grad_log_z),
               of_score = torch::stable::contiguous(grad_score),
               candidates = torch::stable::contiguous(candidates_);
  const Tensor of_emissions =
      new_tensor(in.emissions, std::array{in.batch, in.time, in.vocab}, in.emissions.scalar_type());
  const Tensor of_left = new_tensor(in.left, std::array{in.vocab, in.rank}, in.real());
  const Tensor of_right = new_tensor(in.right, std::array{in.vocab, in.rank}, in.real());
  const Tensor of_dynamic = torch::stable::empty_like(in.dynamic);
  TensorScratch scratch(in.left);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    BeamBatch<T, Real> view = in.view<T, Real>();
    view.candidates = input<int32_t>(candidates);
    const BeamGradient<T, Real> gradient{input<Real>(of_log_z),
                                         scored ? input<Real>(of_score) : nullptr,
                                         beam_wanted(targets),
                                         output<T>(of_emissions),
                                         output<Real>(of_left),
                                         output<Real>(of_right),
                                         in.is_dynamic() ? output<Real>(of_dynamic) : nullptr};
    beam_crf_log_partition_backward(view, gradient, scratch, device.stream());
  });
  return {of_emissions, of_left, of_right, of_dynamic};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("beam_crf_log_partition", TORCH_BOX(&petkit::cuda::beam_log_partition));
  m.impl("beam_crf_log_partition_backward", TORCH_BOX(&petkit::cuda::beam_log_partition_backward));
}
