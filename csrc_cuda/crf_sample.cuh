// Paths drawn from linear-chain CRFs: forward filtering, backward sampling. A warp draws a path,
// one uniform number a position.
#pragma once

#include "crf.cuh"

namespace petkit::cuda {

constexpr int crf_sample_warps = 4; // of a block

// The sum over the lanes up to this one.
__device__ inline double warp_running_sum(double value) {
#pragma unroll
  for (int lanes = 1; lanes < warp_threads; lanes *= 2) {
    const double below = __shfl_up_sync(~0u, value, unsigned(lanes));
    value += lane_index() >= lanes ? below : 0;
  }
  return value;
}

// Draws from probabilities proportional to exp(alpha + onward), every lane the same: the first tag
// whose running sum exceeds the uniform share of the total. Sums are float64.
template <class Real>
__device__ inline int64_t crf_draw(const Real* alpha, const Real* onward, int64_t tags,
                                   double uniform) {
  const auto logit = [&](int64_t tag) { return double(alpha[tag]) + double(onward[tag]); };
  double highest = -INFINITY;
  for (int64_t tag = lane_index(); tag < tags; tag += warp_threads)
    highest = larger(highest, logit(tag));
  const double peak = crf_peak(warp_max(highest));
  const auto share = [&](int64_t tag) {
    return tag < tags ? double(exp_of(Real(logit(tag) - peak))) : 0;
  };
  double sum = 0;
  for (int64_t tag = lane_index(); tag < tags; tag += warp_threads)
    sum += share(tag);
  const double wanted = uniform * warp_sum(sum);
  double before = 0;
  int64_t possible = 0;
  for (int64_t first = 0; first < tags; first += warp_threads) {
    const double own = share(first + lane_index());
    const double running = before + warp_running_sum(own);
    // Running sums of lanes are rounded in different ways: an impossible tag must not profit.
    const unsigned above = __ballot_sync(~0u, own > 0 && running > wanted);
    if (above != 0)
      return first + __ffs(int(above)) - 1;
    const unsigned likely = __ballot_sync(~0u, own > 0);
    possible = likely ? first + warp_threads - 1 - __clz(int(likely)) : possible;
    before = __shfl_sync(~0u, running, warp_threads - 1);
  }
  // Rounding may leave the total below the uniform share: the last tag that is possible.
  return possible;
}

// Where the paths go: (samples, batch, time), as the uniforms; `paths` is samples x batch.
struct CrfSamples {
  const double* uniforms;
  int64_t* tags;
  int64_t paths;
};

// `model` must have its transitions_t, and `forward` its alphas.
template <class T, class Real>
__global__ void __launch_bounds__(crf_sample_warps* warp_threads)
    crf_sample_kernel(CrfModel<Real> model, CrfBatch<T> batch, CrfForward<Real> forward,
                      CrfSamples samples) {
  const int64_t path = int64_t(blockIdx.x) * crf_sample_warps + warp_index();
  if (path >= samples.paths)
    return;
  const int64_t row = path % batch.batch;
  int64_t next = -1;
  for (int64_t step = batch.time - 1; step >= 0; --step) {
    const int64_t at = path * batch.time + step;
    const bool set = batch.set(row, step);
    if (set) {
      const Real* alpha = forward.alphas + (row * batch.time + step) * model.tags;
      const Real* onward = next < 0 ? model.end : model.transitions_t + next * model.tags;
      next = crf_draw(alpha, onward, model.tags, samples.uniforms[at]);
    }
    if (lane_index() == 0)
      samples.tags[at] = set ? next : -1;
  }
}

// Fills `count` paths of each row, and log_z.
template <class T, class Real>
void crf_sample(CrfModel<Real> model, const CrfBatch<T>& batch, const double* uniforms,
                int64_t count, int64_t* tags, Real* log_z, Scratch& scratch, cudaStream_t stream) {
  if (batch.batch == 0)
    return;
  const int64_t pairs = model.tags * model.tags;
  model.weights = scratch.take<Real>(pairs, "weights");
  model.transitions_t = scratch.take<Real>(pairs, "transitions_t");
  crf_prepare(model, scratch, stream);
  CrfForward<Real> forward;
  forward.alphas = scratch.take<Real>(batch.batch * batch.time * model.tags, "alphas");
  forward.log_z = log_z;
  crf_forward(model, batch, forward, scratch, stream);
  const CrfSamples samples{uniforms, tags, count * batch.batch};
  if (count > 0)
    PETKIT_LAUNCH((crf_sample_kernel<T, Real>),
                  dim3(grid_x(ceil_div(samples.paths, crf_sample_warps))),
                  dim3(crf_sample_warps * warp_threads), 0, stream, model, batch, forward, samples);
}

} // namespace petkit::cuda
