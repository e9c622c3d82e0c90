// crf_sample on the CPU: forward filtering, backward sampling, one uniform number a position.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "crf.h"

namespace petkit {
namespace {

// Draws from probabilities proportional to exp(logits); the first whose running sum exceeds the
// uniform share of the total.
template <class F> int64_t draw(int64_t tags, const F& logit, double uniform, double* sums) {
  double peak = -std::numeric_limits<double>::infinity();
  for (int64_t tag = 0; tag < tags; ++tag)
    peak = std::max(peak, logit(tag));
  double total = 0;
  int64_t last = 0;
  for (int64_t tag = 0; tag < tags; ++tag) {
    const double share = std::exp(logit(tag) - peak);
    if (share > 0)
      last = tag;
    sums[tag] = total += share;
  }
  const int64_t found = std::upper_bound(sums, sums + tags, uniform * total) - sums;
  return std::min(found, last);
}

template <class Real> struct Sampler {
  const CrfModel<Real>& model;
  const CrfForward<Real>& forward;
  std::vector<double> sums;

  Real alpha(int64_t step, int r, int64_t tag) const {
    return forward.alphas[(step * crf_group + r) * model.stride + tag];
  }
  void draw_path(const CrfSequence& sequence, int r, const double* uniforms, int64_t* path) {
    int64_t next = -1;
    for (int64_t step = sequence.length - 1; step >= 0; --step) {
      const auto logit = [&](int64_t tag) {
        const Real onward = next < 0 ? model.end[tag] : model.scores[tag * model.stride + next];
        return double(alpha(step, r, tag)) + double(onward);
      };
      const int32_t position = sequence.positions[step];
      next = draw(model.tags, logit, uniforms[position], sums.data());
      path[position] = next;
    }
  }
};

using Samples = std::tuple<Tensor, Tensor>;

template <class Real> Samples sample(const CrfTensors& in, const Tensor& uniforms) {
  CrfParameters<Real> parameters(in, false);
  parameters.make_weights();
  const CrfBatch<Real> batch(in);
  const int64_t count = uniforms.size(0);
  const Tensor samples = torch::stable::new_empty(
      in.mask, std::array<int64_t, 3>{count, in.batch, in.time}, ScalarType::Long);
  const Tensor log_z = crf_new<Real>(in, {in.batch});
  int64_t* paths = crf_out<int64_t>(samples);
  std::fill(paths, paths + samples.numel(), -1);
  std::fill(crf_out<Real>(log_z), crf_out<Real>(log_z) + in.batch, Real(0));
  if (in.time == 0)
    return {samples, log_z};
  const double* drawn = crf_data<double>(uniforms);
  const int64_t slots = std::min<int64_t>(batch.groups(), 64);
  over_slots(slots, [&](int64_t slot) {
    const CrfModel<Real>& model = parameters.model();
    CrfWorkspace<Real> workspace(batch.longest(), model.stride, true);
    const CrfForward<Real> forward = workspace.forward();
    Sampler<Real> sampler{model, forward, std::vector<double>(size_t(in.tags))};
    for (int64_t g = slot; g < batch.groups(); g += slots) {
      double found[crf_group];
      const CrfGroup group = batch.group(g);
      crf_kernels<Real>().forward(model, group, forward, found, workspace.scratch.data());
      for (int r = 0; r < group.count; ++r) {
        const int64_t row = batch.order[size_t(batch.first(g) + r)];
        crf_out<Real>(log_z)[row] = Real(found[r]);
        for (int64_t s = 0; s < count; ++s) {
          const int64_t place = (s * in.batch + row) * in.time;
          sampler.draw_path(group.sequences[r], r, drawn + place, paths + place);
        }
      }
    }
  });
  return {samples, log_z};
}

Samples crf_sample(const Tensor emissions, const Tensor mask, const Tensor transitions,
                   const Tensor start, const Tensor end, const Tensor uniforms_) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  const Tensor uniforms = torch::stable::contiguous(uniforms_);
  check_dtype(uniforms, "uniforms", ScalarType::Double);
  check_rank(uniforms, "uniforms", 3);
  CrfTensors::check_shape(uniforms, "uniforms", {uniforms.size(0), in.batch, in.time});
  return with_crf_type(emissions, [&](auto real) { return sample<decltype(real)>(in, uniforms); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) { m.impl("crf_sample", TORCH_BOX(&petkit::crf_sample)); }
