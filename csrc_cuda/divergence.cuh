// Divergences between the softmaxes of two rows of logits, a of a student and b of a teacher, one
// block a pair of rows, and their gradient in the student's.
//
// With d = (x - maximum) log2(e) / temperature of each row, its softmax is 2^d over the sum of all
// 2^d.
#pragma once

#include "common/softmax.cuh"

namespace petkit::cuda {

// Of each row: both maxima, both sums of powers, and what the gradient is centred on.
constexpr int64_t statistics_width = 5;

// 0 for KL(b || a), 1 for KL(a || b), between them a Jensen-Shannon divergence.
struct DivergenceSettings {
  RowMask mask;
  double beta, temperature;

  __device__ bool forward() const { return beta == 0; }
  __device__ bool reverse() const { return beta == 1; }
  __device__ float factor() const { return float(1.4426950408889634 / temperature); }
  // The mixture of both softmaxes is, but for a factor, 2^da + share 2^db.
  __device__ float share(double sum_a, double sum_b) const {
    return float(beta / (1 - beta) * sum_a / sum_b);
  }
};

struct DivergenceResults {
  float *loss, *forward_kl, *reverse_kl, *statistics;
};

// One logit as an exponent of two and as a power.
struct Power {
  float d, power;
  bool counts; // whether the token is possible; not where it is a nan, which `power` keeps

  __device__ Power(float x, float maximum, float factor) : d((x - maximum) * factor) {
    power = exp2f(d < least_exponent ? least_exponent : d);
    counts = d > least_exponent;
  }
  // Nats of the exponent less the logarithm of a mixture.
  __device__ float less(float log_mixture) const { return d * float(ln2) - log_mixture; }
};

// Calls f(a, b) for every pair of logits that is this thread's.
template <class A, class B, class F>
__device__ inline void over_pairs(const A* a, const B* b, int64_t vocab, bool aligned, const F& f) {
  over_groups(vocab, [&](int64_t first) {
    float of_a[group], of_b[group];
    load_group(a + first, vocab - first, aligned, of_a);
    load_group(b + first, vocab - first, aligned, of_b);
#pragma unroll
    for (int i = 0; i < group; ++i)
      if (first + i < vocab)
        f(of_a[i], of_b[i]);
  });
}

// Every thread of the block must call it; whatever is not finite shows in the results.
template <class A, class B>
__device__ inline void divergence_of(const A* a, const B* b, const DivergenceSettings& settings,
                                     const DivergenceResults& results, int64_t row, int64_t vocab,
                                     bool aligned) {
  float top_a = -INFINITY, top_b = -INFINITY;
  over_pairs(a, b, vocab, aligned,
             [&](float x, float y) { top_a = fmaxf(top_a, x), top_b = fmaxf(top_b, y); });
  top_a = block_max(top_a), top_b = block_max(top_b);
  const float factor = settings.factor();
  float own_a = 0, own_b = 0, cross_a = 0, cross_b = 0;
  over_pairs(a, b, vocab, aligned, [&](float x, float y) {
    const Power of_a(x, top_a, factor), of_b(y, top_b, factor);
    own_a += of_a.power, own_b += of_b.power;
    // 0 log 0 is 0.
    cross_a += of_a.counts ? of_a.power * (of_a.d - of_b.d) : 0;
    cross_b += of_b.counts ? of_b.power * (of_b.d - of_a.d) : 0;
  });
  const double sum_a = block_sum(double(own_a)), sum_b = block_sum(double(own_b));
  const double against = ln2 * block_sum(double(cross_a)) / sum_a;
  const double apart = log(sum_a) - log(sum_b);
  const double forward = ln2 * block_sum(double(cross_b)) / sum_b + apart,
               reverse = against - apart;
  double loss = settings.forward() ? forward : reverse, centre = settings.reverse() ? against : 0;
  if (!settings.forward() && !settings.reverse()) {
    const float share = settings.share(sum_a, sum_b);
    float mixed_a = 0, mixed_b = 0;
    over_pairs(a, b, vocab, aligned, [&](float x, float y) {
      const Power of_a(x, top_a, factor), of_b(y, top_b, factor);
      const float log_mixture = logf(of_a.power + share * of_b.power);
      mixed_a += of_a.counts ? of_a.power * of_a.less(log_mixture) : 0;
      mixed_b += of_b.counts ? of_b.power * of_b.less(log_mixture) : 0;
    });
    centre = block_sum(double(mixed_a)) / sum_a;
    const double outer = -log1p(-settings.beta),
                 of_teacher = block_sum(double(mixed_b)) / sum_b + apart;
    loss = settings.beta * (of_teacher + outer) + (1 - settings.beta) * (centre + outer);
  }
  if (threadIdx.x != 0)
    return;
  float* own = results.statistics + row * statistics_width;
  own[0] = top_a, own[1] = top_b, own[2] = float(sum_a), own[3] = float(sum_b);
  own[4] = float(centre);
  results.loss[row] = float(loss);
  results.forward_kl[row] = float(forward);
  results.reverse_kl[row] = float(reverse);
}

template <class A, class B>
__global__ void __launch_bounds__(row_threads)
    divergence_kernel(const A* __restrict__ student, const B* __restrict__ teacher,
                      DivergenceSettings settings, DivergenceResults results, int64_t vocab,
                      bool aligned) {
  const int64_t row = blockIdx.x;
  if (!settings.mask.skips(row))
    return divergence_of(student + row * vocab, teacher + row * vocab, settings, results, row,
                         vocab, aligned);
  if (threadIdx.x < statistics_width)
    results.statistics[row * statistics_width + threadIdx.x] = 0;
  if (threadIdx.x == 0)
    results.loss[row] = results.forward_kl[row] = results.reverse_kl[row] = 0;
}

// What a row's gradient is made of; `upstream` is that of its loss.
struct DivergenceSlope {
  float of_a, of_b, centre, share;

  __device__ DivergenceSlope(const DivergenceSettings& settings, const float* own,
                             double upstream) {
    const double rise = upstream / settings.temperature, sum_a = own[2], sum_b = own[3];
    const bool mixed = !settings.forward() && !settings.reverse();
    of_a = float((mixed ? 1 - settings.beta : 1) * rise / sum_a);
    of_b = float(rise / sum_b);
    centre = own[4];
    share = mixed ? settings.share(sum_a, sum_b) : 0;
  }
  __device__ float operator()(const DivergenceSettings& settings, const Power& a,
                              const Power& b) const {
    if (settings.forward())
      return (a.counts ? a.power * of_a : 0) - (b.counts ? b.power * of_b : 0);
    if (!a.counts)
      return 0;
    const float nats =
        settings.reverse() ? (a.d - b.d) * float(ln2) : a.less(logf(a.power + share * b.power));
    return of_a * a.power * (nats - centre);
  }
};

// `gradient` may be the student's logits.
template <class A, class B>
__global__ void __launch_bounds__(row_threads)
    divergence_gradient_kernel(const A* student, const B* teacher, const float* statistics,
                               const float* upstream, DivergenceSettings settings, A* gradient,
                               int64_t vocab, bool aligned) {
  const int64_t row = blockIdx.x;
  const float* own = statistics + row * statistics_width;
  const A* a = student + row * vocab;
  const B* b = teacher + row * vocab;
  A* out = gradient + row * vocab;
  if (settings.mask.skips(row))
    return fill_row(out, vocab, aligned, 0);
  // Beside a +infinity every other token is impossible, but no less unknown.
  if (own[2] != own[2] || own[3] != own[3])
    return fill_row(out, vocab, aligned, NAN);
  const float top_a = own[0], top_b = own[1], factor = settings.factor();
  const DivergenceSlope slope(settings, own, upstream[row]);
  over_groups(vocab, [&](int64_t first) {
    float of_a[group], of_b[group];
    load_group(a + first, vocab - first, aligned, of_a);
    load_group(b + first, vocab - first, aligned, of_b);
#pragma unroll
    for (int i = 0; i < group; ++i)
      of_a[i] = slope(settings, Power(of_a[i], top_a, factor), Power(of_b[i], top_b, factor));
    store_group(out + first, vocab - first, aligned, of_a);
  });
}

template <class A, class B>
void divergence(const A* student, const B* teacher, const DivergenceSettings& settings,
                const DivergenceResults& results, int64_t rows, int64_t vocab,
                cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(student, vocab, rows) && groups_aligned(teacher, vocab, rows);
  PETKIT_LAUNCH((divergence_kernel<A, B>), dim3(grid_x(rows)), dim3(row_threads), 0, stream,
                student, teacher, settings, results, vocab, aligned);
}

template <class A, class B>
void divergence_backward(const A* student, const B* teacher, const float* statistics,
                         const float* upstream, const DivergenceSettings& settings, A* gradient,
                         int64_t rows, int64_t vocab, cudaStream_t stream) {
  if (rows == 0)
    return;
  const bool aligned = groups_aligned(student, vocab, rows) &&
                       groups_aligned(teacher, vocab, rows) &&
                       groups_aligned(gradient, vocab, rows);
  PETKIT_LAUNCH((divergence_gradient_kernel<A, B>), dim3(grid_x(rows)), dim3(row_threads), 0,
                stream, student, teacher, statistics, upstream, settings, gradient, vocab, aligned);
}

} // namespace petkit::cuda
