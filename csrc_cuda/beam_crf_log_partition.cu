#include <tuple>

#include "beam_crf_log_partition.cuh"
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

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("beam_crf_log_partition", TORCH_BOX(&petkit::cuda::beam_log_partition));
}
