// crf_log_partition on the CPU, and its gradient, which runs the forward recursion again rather
// than keep what it made.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "crf.h"
#include "crf_posterior.h"

namespace petkit {
namespace {

template <class Real> Tensor log_partition(const CrfTensors& in) {
  CrfParameters<Real> parameters(in, false);
  parameters.make_weights();
  const CrfBatch<Real> batch(in);
  const Tensor log_z = crf_new<Real>(in, {in.batch});
  Real* out = crf_out<Real>(log_z);
  if (in.time == 0) {
    std::fill(out, out + in.batch, Real(0));
    return log_z;
  }
  const int64_t slots = std::min<int64_t>(batch.groups(), 64);
  over_slots(slots, [&](int64_t slot) {
    CrfWorkspace<Real> workspace(batch.longest(), parameters.model().stride, false);
    for (int64_t g = slot; g < batch.groups(); g += slots) {
      double found[crf_group];
      const CrfGroup group = batch.group(g);
      crf_kernels<Real>().forward(parameters.model(), group, workspace.forward(), found,
                                  workspace.scratch.data());
      for (int r = 0; r < group.count; ++r)
        out[batch.order[size_t(batch.first(g) + r)]] = Real(found[r]);
    }
  });
  return log_z;
}

Tensor crf_log_partition(const Tensor emissions, const Tensor mask, const Tensor transitions,
                         const Tensor start, const Tensor end) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  return with_crf_type(emissions, [&](auto real) { return log_partition<decltype(real)>(in); });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Real> Gradients log_partition_backward(const CrfTensors& in, const Tensor& grad_) {
  const Tensor grad = torch::stable::contiguous(grad_);
  check_dtype(grad, "grad", crf_scalar_type<Real>());
  CrfTensors::check_shape(grad, "grad", {in.batch});
  const Tensor of_emissions =
      torch::stable::new_empty(in.emissions, std::array<int64_t, 3>{in.batch, in.time, in.tags});
  CrfPosterior<Real> posterior(in, of_emissions, crf_data<Real>(grad), false);
  const Tensor of_transitions = crf_new<Real>(in, {in.tags, in.tags});
  const Tensor of_start = crf_new<Real>(in, {in.tags}), of_end = crf_new<Real>(in, {in.tags});
  posterior.sums(crf_out<Real>(of_transitions), crf_out<Real>(of_start), crf_out<Real>(of_end));
  return {of_emissions, of_transitions, of_start, of_end};
}

Gradients crf_log_partition_backward(const Tensor grad, const Tensor emissions, const Tensor mask,
                                     const Tensor transitions, const Tensor start,
                                     const Tensor end) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  return with_crf_type(emissions,
                       [&](auto real) { return log_partition_backward<decltype(real)>(in, grad); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("crf_log_partition", TORCH_BOX(&petkit::crf_log_partition));
  m.impl("crf_log_partition_backward", TORCH_BOX(&petkit::crf_log_partition_backward));
}
