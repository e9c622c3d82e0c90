// Softmax statistics of rows of logits, and their gradient, for one instruction set `Isa`.
#pragma once

#include "exponential_impl.h"
#include "vector_impl.h"

namespace petkit {
namespace {

// Logits of one dtype as vectors; lanes behind the end hold -infinity, which weighs nothing.
template <DType D> struct Logits {
  const char* data;

  Logits(Items<D>, const void* p) : data(static_cast<const char*>(p)) {}

  Isa::Float load(int64_t i) const { return Items<D>::load(data, i); }
  // Into the second-level cache: while a block is worked on, the next one comes from memory.
  void prefetch(int64_t i) const { __builtin_prefetch(data + i * item_size(D), 0, 2); }
  Isa::Float load_part(int64_t i, int64_t count) const {
    return Items<D>::load_part(data, i, count, -__builtin_inff());
  }
};

template <class Visit> inline void visit_logits(const void* x, DType dtype, const Visit& visit) {
  visit_dtype(dtype, [&](auto items) { visit(Logits(items, x)); });
}

// A nan may or may not show in the result: `has_nan` tells.
template <class Source> float highest(const Source& x, int64_t count) {
  Isa::Float best[unrolled];
  for (int64_t u = 0; u < unrolled; ++u)
    best[u] = Isa::set(-__builtin_inff());
  int64_t i = 0;
  for (; i + unrolled * W <= count; i += unrolled * W)
    for (int64_t u = 0; u < unrolled; ++u)
      best[u] = Isa::max(x.load(i + u * W), best[u]);
  for (; i + W <= count; i += W)
    best[0] = Isa::max(x.load(i), best[0]);
  if (i < count)
    best[0] = Isa::max(x.load_part(i, count - i), best[0]);
  for (int64_t u = 1; u < unrolled; ++u)
    best[0] = Isa::max(best[u], best[0]);
  return Isa::highest(best[0]);
}

template <class Source> bool has_nan(const Source& x, int64_t count) {
  bool found = false;
  sweep(
      count, [&](int64_t i) { found |= Isa::any(Isa::unordered(x.load(i))); },
      [&](int64_t i, int64_t rest) { found |= Isa::any(Isa::unordered(x.load_part(i, rest))); });
  return found;
}

// Several sums side by side: an addition takes some cycles, and short chains round less.
struct SoftmaxLanes {
  Isa::Float weight[unrolled], first[unrolled], second[unrolled];
  Isa::Float maximum, factor;

  SoftmaxLanes(float highest, float scaling)
      : maximum(Isa::set(highest)), factor(Isa::set(scaling)) {
    for (int64_t u = 0; u < unrolled; ++u)
      weight[u] = first[u] = second[u] = Isa::set(0);
  }
  void add(int64_t u, Isa::Float x) {
    const Isa::Float d = Isa::mul(Isa::sub(x, maximum), factor);
    // In this order a nan stays one.
    const Isa::Float exponent = Isa::max(Isa::set(least_exponent), d);
    const Isa::Float power = power_of_two(exponent), product = Isa::mul(exponent, power);
    weight[u] = Isa::add(weight[u], power);
    first[u] = Isa::add(first[u], product);
    second[u] = Isa::fma(exponent, product, second[u]);
  }
  static double total(const Isa::Float (&sums)[unrolled]) {
    double all = 0;
    for (int64_t u = 0; u < unrolled; ++u)
      all += double(Isa::sum(sums[u]));
    return all;
  }
};

template <class Source>
SoftmaxSums sums_of(const Source& x, int64_t count, float factor, float before, float gap) {
  const float own = highest(x, count), maximum = own > before ? own : before;
  // So little that it would not change a digit, or a block of nothing but -infinity.
  if (own < before - gap || maximum == -__builtin_inff()) {
    const double none = has_nan(x, count) ? __builtin_nan("") : 0;
    return {maximum, none, none, none, own};
  }
  SoftmaxLanes lanes(maximum, factor);
  int64_t i = 0;
  for (; i + unrolled * W <= count; i += unrolled * W)
    for (int64_t u = 0; u < unrolled; ++u) {
      x.prefetch(i + u * W + count);
      lanes.add(u, x.load(i + u * W));
    }
  for (; i + W <= count; i += W)
    lanes.add(0, x.load(i));
  if (i < count)
    lanes.add(0, x.load_part(i, count - i));
  return {maximum, SoftmaxLanes::total(lanes.weight), SoftmaxLanes::total(lanes.first),
          SoftmaxLanes::total(lanes.second), own};
}

SoftmaxSums softmax_sums(const void* data, DType dtype, int64_t count, float factor, float before,
                         float gap) {
  SoftmaxSums sums;
  visit_logits(data, dtype, [&](const auto& x) { sums = sums_of(x, count, factor, before, gap); });
  return sums;
}

void softmax_gradient(const void* data, DType dtype, int64_t count, const SoftmaxSlope& slope,
                      void* out) {
  const Isa::Float maximum = Isa::set(slope.maximum), factor = Isa::set(slope.factor);
  const Isa::Float constant = Isa::set(slope.constant), rise = Isa::set(slope.slope);
  const auto gradient = [&](Isa::Float x) {
    const Isa::Float least = Isa::set(least_exponent);
    const Isa::Float exponent = Isa::max(least, Isa::mul(Isa::sub(x, maximum), factor));
    const Isa::Float result = Isa::mul(power_of_two(exponent), Isa::fma(rise, exponent, constant));
    // An impossible token has no gradient at all.
    return Isa::select(Isa::greater(exponent, least), result, Isa::set(0));
  };
  char* target = static_cast<char*>(out);
  visit_logits(data, dtype, [&](const auto& x) {
    sweep(
        count, [&](int64_t i) { store_items(target, dtype, i, gradient(x.load(i))); },
        [&](int64_t i, int64_t rest) {
          store_items_part(target, dtype, i, gradient(x.load_part(i, rest)), rest);
        });
  });
}

// One bit for each lane.
inline uint32_t lane_bits(Isa::Mask mask) {
  uint8_t bytes[4] = {};
  Isa::store_mask(bytes, mask);
  uint32_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

int64_t positions_above(const float* x, int64_t count, float bound, int32_t* positions) {
  const Isa::Float limit = Isa::set(bound);
  int64_t found = 0, i = 0;
  // Hardly any is above: several vectors are asked with one branch.
  for (; i + unrolled * W <= count; i += unrolled * W) {
    Isa::Mask above[unrolled], any;
    any = above[0] = Isa::not_at_most(Isa::load(x + i), limit);
    for (int64_t u = 1; u < unrolled; ++u) {
      above[u] = Isa::not_at_most(Isa::load(x + i + u * W), limit);
      any = Isa::either(any, above[u]);
    }
    if (!Isa::any(any))
      continue;
    for (int64_t u = 0; u < unrolled; ++u)
      for (uint32_t bits = lane_bits(above[u]); bits != 0; bits &= bits - 1)
        positions[found++] = int32_t(i + u * W + __builtin_ctz(bits));
  }
  for (; i < count; ++i) {
    positions[found] = int32_t(i);
    found += !(x[i] <= bound);
  }
  return found;
}

void fill_softmax(Kernels& k) {
  k.softmax_sums = softmax_sums;
  k.softmax_gradient = softmax_gradient;
  k.positions_above = positions_above;
}

} // namespace
} // namespace petkit
