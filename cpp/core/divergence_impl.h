// Divergences between two rows of logits, and their gradients, for one instruction set `Isa`.
#pragma once

#include "exponential_impl.h"
#include "vector_impl.h"

namespace petkit {
namespace {

// One row's logits as exponents of two and as powers.
struct Powers {
  Isa::Float d, power;
  Isa::Mask counts; // whether the token is possible; not where it is a nan, which `power` keeps

  Powers(Isa::Float x, Isa::Float maximum, Isa::Float factor)
      : d(Isa::mul(Isa::sub(x, maximum), factor)),
        // In this order a nan stays one.
        power(power_of_two(Isa::max(Isa::set(least_exponent), d))),
        counts(Isa::greater(d, Isa::set(least_exponent))) {}
};

struct PowerPair {
  Powers a, b;
};

class PairOf {
public:
  explicit PairOf(const LogitPair& pair)
      : maximum_a_(Isa::set(pair.maximum_a)), maximum_b_(Isa::set(pair.maximum_b)),
        factor_(Isa::set(pair.factor)) {}

  PowerPair operator()(Isa::Float a, Isa::Float b) const {
    return {Powers(a, maximum_a_, factor_), Powers(b, maximum_b_, factor_)};
  }

private:
  Isa::Float maximum_a_, maximum_b_, factor_;
};

// Calls f(lane of sums, pair) for every vector; behind the end every token is impossible.
template <class F>
inline void visit_pairs(const LogitPair& pair, const float* a, const float* b, int64_t count,
                        const F& f) {
  const PairOf pair_of(pair);
  const float impossible = -__builtin_inff();
  int64_t i = 0;
  for (; i + 2 * W <= count; i += 2 * W)
    for (int64_t u = 0; u < 2; ++u)
      f(u, pair_of(Isa::load(a + i + u * W), Isa::load(b + i + u * W)));
  for (; i + W <= count; i += W)
    f(0, pair_of(Isa::load(a + i), Isa::load(b + i)));
  if (i < count)
    f(0, pair_of(load_part(a + i, count - i, impossible), load_part(b + i, count - i, impossible)));
}

// Two chains side by side.
struct LaneSum {
  Isa::Float parts[2];

  LaneSum() { parts[0] = parts[1] = Isa::set(0); }
  void add(int64_t u, Isa::Float x) { parts[u] = Isa::add(parts[u], x); }
  // What an impossible token would add, perhaps no number, is left out.
  void add_where(int64_t u, Isa::Mask counts, Isa::Float x) {
    add(u, Isa::select(counts, x, Isa::set(0)));
  }
  double total() const { return double(Isa::sum(parts[0])) + double(Isa::sum(parts[1])); }
};

inline float highest_of(const float* x, int64_t count) {
  Isa::Float best = Isa::set(-__builtin_inff());
  sweep(
      count, [&](int64_t i) { best = Isa::max(Isa::load(x + i), best); },
      [&](int64_t i, int64_t rest) {
        best = Isa::max(load_part(x + i, rest, -__builtin_inff()), best);
      });
  return Isa::highest(best);
}

inline PairSums pair_sums(const LogitPair& pair, const float* a, const float* b, int64_t count) {
  LaneSum of_a, of_b, a_cross, b_cross;
  visit_pairs(pair, a, b, count, [&](int64_t u, const PowerPair& both) {
    const Isa::Float apart = Isa::sub(both.a.d, both.b.d);
    of_a.add(u, both.a.power);
    of_b.add(u, both.b.power);
    a_cross.add_where(u, both.a.counts, Isa::mul(both.a.power, apart));
    b_cross.add_where(u, both.b.counts, Isa::mul(both.b.power, apart));
  });
  return {of_a.total(), of_b.total(), a_cross.total(), -b_cross.total()};
}

// Nats of the rows' exponents less the logarithm of their mixture.
class Mixture {
public:
  explicit Mixture(float share) : share_(Isa::set(share)) {}

  Isa::Float log_of_mixture(const PowerPair& both) const {
    return log_of(Isa::fma(share_, both.b.power, both.a.power));
  }
  static Isa::Float less(const Powers& row, Isa::Float log_mixture) {
    return Isa::sub(Isa::mul(row.d, Isa::set(0.693147181f)), log_mixture);
  }

private:
  Isa::Float share_;
};

inline MixtureSums mixture_sums(const LogitPair& pair, float share, const float* a, const float* b,
                                int64_t count) {
  const Mixture mixture(share);
  LaneSum of_a, of_b;
  visit_pairs(pair, a, b, count, [&](int64_t u, const PowerPair& both) {
    const Isa::Float log_mixture = mixture.log_of_mixture(both);
    of_a.add_where(u, both.a.counts, Isa::mul(both.a.power, Mixture::less(both.a, log_mixture)));
    of_b.add_where(u, both.b.counts, Isa::mul(both.b.power, Mixture::less(both.b, log_mixture)));
  });
  return {of_a.total(), of_b.total()};
}

// Writes f(pair) for every vector.
template <class F>
inline void write_pairs(const LogitPair& pair, const float* a, const float* b, int64_t count,
                        float* out, const F& f) {
  const PairOf pair_of(pair);
  const float impossible = -__builtin_inff();
  sweep(
      count,
      [&](int64_t i) { Isa::store(out + i, f(pair_of(Isa::load(a + i), Isa::load(b + i)))); },
      [&](int64_t i, int64_t rest) {
        const PowerPair both =
            pair_of(load_part(a + i, rest, impossible), load_part(b + i, rest, impossible));
        store_part(out + i, f(both), rest);
      });
}

inline void gradient_apart(const LogitPair& pair, const DivergenceSlope& slope, const float* a,
                           const float* b, int64_t count, float* out) {
  const Isa::Float first = Isa::set(slope.first), second = Isa::set(slope.second);
  write_pairs(pair, a, b, count, out, [&](const PowerPair& both) {
    const Isa::Float none = Isa::set(0);
    // An impossible token has no gradient at all.
    const Isa::Float of_a = Isa::select(both.a.counts, Isa::mul(both.a.power, first), none);
    const Isa::Float of_b = Isa::select(both.b.counts, Isa::mul(both.b.power, second), none);
    return Isa::sub(of_a, of_b);
  });
}

inline void gradient_against(const LogitPair& pair, const DivergenceSlope& slope, const float* a,
                             const float* b, int64_t count, float* out) {
  const Isa::Float first = Isa::set(slope.first), second = Isa::set(slope.second);
  write_pairs(pair, a, b, count, out, [&](const PowerPair& both) {
    const Isa::Float nats = Isa::mul(Isa::sub(both.a.d, both.b.d), Isa::set(0.693147181f));
    const Isa::Float rise = Isa::mul(Isa::mul(first, both.a.power), Isa::sub(nats, second));
    return Isa::select(both.a.counts, rise, Isa::set(0));
  });
}

inline void gradient_mixed(const LogitPair& pair, const DivergenceSlope& slope, const float* a,
                           const float* b, int64_t count, float* out) {
  const Isa::Float first = Isa::set(slope.first), second = Isa::set(slope.second);
  const Mixture mixture(slope.share);
  write_pairs(pair, a, b, count, out, [&](const PowerPair& both) {
    const Isa::Float nats = Mixture::less(both.a, mixture.log_of_mixture(both));
    const Isa::Float rise = Isa::mul(Isa::mul(first, both.a.power), Isa::sub(nats, second));
    return Isa::select(both.a.counts, rise, Isa::set(0));
  });
}

inline void fill_divergence(DivergenceKernels& k) {
  k.highest = highest_of;
  k.sums = pair_sums;
  k.mixture = mixture_sums;
  k.apart = gradient_apart;
  k.against = gradient_against;
  k.mixed = gradient_mixed;
}

} // namespace
} // namespace petkit
