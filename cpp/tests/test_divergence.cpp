// Sums, mixture and gradients of two rows of every set of kernels against plain loops in double.
#include <algorithm>

#include "check.h"

using namespace petkit;

namespace {

constexpr int sizes[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 47, 64, 65, 129, 2048};
constexpr float factor = 1.44269504f / 0.8f;
constexpr double ln2 = 0.6931471805599453;

struct Sides {
  std::vector<float> a, b;
  LogitPair pair;
};

// Every third token is impossible to one side or to both.
void make_some_impossible(Sides& sides) {
  for (size_t i = 1; i < sides.a.size(); ++i) {
    if (i % 9 == 3 || i % 9 == 6)
      sides.a[i] = -INFINITY;
    if (i % 9 == 0 || i % 9 == 3)
      sides.b[i] = -INFINITY;
  }
}

Sides sides_of(int size, float scale, float offset, bool impossible) {
  Random random(size);
  Sides sides{random.floats(size), random.floats(size), {0, 0, factor}};
  for (int i = 0; i < size; ++i) {
    sides.a[i] = sides.a[i] * scale + offset;
    sides.b[i] = sides.b[i] * scale - offset;
  }
  if (impossible)
    make_some_impossible(sides);
  sides.pair.maximum_a = *std::max_element(sides.a.begin(), sides.a.end());
  sides.pair.maximum_b = *std::max_element(sides.b.begin(), sides.b.end());
  return sides;
}

double exponent_a(const Sides& s, int i) {
  return (double(s.a[i]) - s.pair.maximum_a) * double(factor);
}
double exponent_b(const Sides& s, int i) {
  return (double(s.b[i]) - s.pair.maximum_b) * double(factor);
}
double log_of_mixture(const Sides& s, int i, double share) {
  return std::log(std::exp2(exponent_a(s, i)) + share * std::exp2(exponent_b(s, i)));
}

// A sum and what float32 may be off by: rounding is relative to the size of what is added.
struct Sum {
  double total = 0, size = 0;

  void add(double power, double value) {
    // 0 log 0 is 0.
    if (power < std::exp2(-125.0))
      return;
    total += power * value;
    size += power * (std::fabs(value) + 1);
  }
  bool is(double got) const {
    return std::isinf(total) ? got == total : std::fabs(got - total) <= 2e-6 * size + 1e-30;
  }
};

void sums_add_up(const Kernels& k, const Sides& s) {
  const int size = int(s.a.size());
  Sum of_a, of_b, a_cross, b_cross;
  for (int i = 0; i < size; ++i) {
    const double da = exponent_a(s, i), db = exponent_b(s, i);
    of_a.add(std::exp2(da), 1), of_b.add(std::exp2(db), 1);
    a_cross.add(std::exp2(da), da - db), b_cross.add(std::exp2(db), db - da);
  }
  const PairSums got = k.divergence.sums(s.pair, s.a.data(), s.b.data(), size);
  CHECK(of_a.is(got.a) && of_b.is(got.b), "%s, %d: %g %g", k.name, size, got.a, got.b);
  CHECK(a_cross.is(got.a_cross), "%s, %d: %g, not %g", k.name, size, got.a_cross, a_cross.total);
  CHECK(b_cross.is(got.b_cross), "%s, %d: %g, not %g", k.name, size, got.b_cross, b_cross.total);
}

void mixtures_add_up(const Kernels& k, const Sides& s, float share) {
  const int size = int(s.a.size());
  Sum of_a, of_b;
  for (int i = 0; i < size; ++i) {
    const double da = exponent_a(s, i), db = exponent_b(s, i),
                 mixture = log_of_mixture(s, i, double(share));
    of_a.add(std::exp2(da), ln2 * da - mixture), of_b.add(std::exp2(db), ln2 * db - mixture);
  }
  const MixtureSums got = k.divergence.mixture(s.pair, share, s.a.data(), s.b.data(), size);
  CHECK(of_a.is(got.a), "%s, %d: %g, not %g", k.name, size, got.a, of_a.total);
  CHECK(of_b.is(got.b), "%s, %d: %g, not %g", k.name, size, got.b, of_b.total);
}

using Gradient = void (*)(const LogitPair&, const DivergenceSlope&, const float*, const float*,
                          int64_t, float*);

// `expected(i)` is the gradient but for the factor `first`; `size(i)` what rounding is relative to.
template <class Expected>
void follows(const Kernels& k, const char* name, Gradient gradient, const DivergenceSlope& slope,
             const Sides& s, const Expected& expected) {
  const int size = int(s.a.size());
  std::vector<float> got(size_t(size) + 1, NAN), place = s.a;
  got[size] = 7;
  gradient(s.pair, slope, s.a.data(), s.b.data(), size, got.data());
  // In the logits' own place too.
  gradient(s.pair, slope, place.data(), s.b.data(), size, place.data());
  CHECK(got[size] == 7, "%s wrote behind the end, %s, %d", k.name, name, size);
  for (int i = 0; i < size; ++i) {
    const double wanted = expected(i);
    CHECK(std::fabs(got[i] - wanted) <= 3e-6 * (1 + std::fabs(wanted)),
          "%s, %s, %d of %d: %g, not %g", k.name, name, i, size, got[i], wanted);
    CHECK(got[i] == place[i], "%s, %s in place, %d of %d: %g", k.name, name, i, size, place[i]);
    if (std::isinf(s.a[i]) && std::isinf(s.b[i]))
      CHECK(got[i] == 0, "%s, %s, impossible %d of %d: %g", k.name, name, i, size, got[i]);
  }
}

void gradients_follow_the_formulas(const Kernels& k, const Sides& s, bool impossible) {
  const DivergenceSlope slope{0.7f, -0.3f, 1.9f};
  const double first = 0.7f, second = -0.3f;
  const auto power_a = [&](int i) { return std::exp2(exponent_a(s, i)); };
  follows(k, "apart", k.divergence.apart, slope, s,
          [&](int i) { return first * power_a(i) - second * std::exp2(exponent_b(s, i)); });
  follows(k, "mixed", k.divergence.mixed, slope, s, [&](int i) {
    const double nats = ln2 * exponent_a(s, i) - log_of_mixture(s, i, double(1.9f));
    return power_a(i) > 0 ? first * power_a(i) * (nats - second) : 0;
  });
  // Infinite where the other side is impossible: see below.
  if (!impossible)
    follows(k, "against", k.divergence.against, slope, s, [&](int i) {
      return first * power_a(i) * (ln2 * (exponent_a(s, i) - exponent_b(s, i)) - second);
    });
}

void infinite_divergences_are_infinite(const Kernels& k) {
  for (int size : sizes) {
    Sides s = sides_of(size, 1, 0, false);
    const int place = size / 2;
    s.b[place] = -INFINITY;
    s.pair.maximum_b = 1;
    PairSums got = k.divergence.sums(s.pair, s.a.data(), s.b.data(), size);
    CHECK(got.a_cross == INFINITY && std::isfinite(got.b_cross), "%s, %d", k.name, size);
    std::vector<float> gradient(size);
    k.divergence.against(s.pair, {1, 0, 0}, s.a.data(), s.b.data(), size, gradient.data());
    CHECK(gradient[place] == INFINITY, "%s, %d: %g", k.name, size, gradient[place]);
    s.a[place] = -INFINITY;
    got = k.divergence.sums(s.pair, s.a.data(), s.b.data(), size);
    CHECK(std::isfinite(got.a_cross) && std::isfinite(got.b_cross), "%s, %d", k.name, size);
    k.divergence.against(s.pair, {1, 0, 0}, s.a.data(), s.b.data(), size, gradient.data());
    CHECK(gradient[place] == 0, "%s, %d: %g", k.name, size, gradient[place]);
  }
}

void highest_is_the_highest(const Kernels& k) {
  for (int size : sizes)
    for (int place : {0, size / 2, size - 1}) {
      std::vector<float> x = Random(size).floats(size);
      x[place] = 3;
      CHECK(k.divergence.highest(x.data(), size) == 3, "%s, %d of %d", k.name, place, size);
      x.assign(size, -INFINITY);
      CHECK(k.divergence.highest(x.data(), size) == -INFINITY, "%s, nothing in %d", k.name, size);
      x.assign(size, -2);
      CHECK(k.divergence.highest(x.data(), size) == -2, "%s, behind %d", k.name, size);
    }
}

// Of either side, at every place of a vector.
void what_is_not_finite_shows(const Kernels& k) {
  for (int size : sizes)
    for (int place : {0, size / 2, size - 1})
      for (float bad : {NAN, INFINITY})
        for (bool of_a : {true, false}) {
          Sides s = sides_of(size, 1, 0, false);
          (of_a ? s.a : s.b)[place] = bad;
          (of_a ? s.pair.maximum_a : s.pair.maximum_b) = std::isinf(bad) ? INFINITY : 1;
          const PairSums sums = k.divergence.sums(s.pair, s.a.data(), s.b.data(), size);
          CHECK(std::isnan(of_a ? sums.a : sums.b), "%s, %g at %d of %d", k.name, bad, place, size);
          CHECK(!std::isnan(of_a ? sums.b : sums.a), "%s, %g at %d of %d", k.name, bad, place,
                size);
        }
}

} // namespace

int main() {
  with_each_kernels([](const Kernels& k) {
    for (int size : sizes)
      for (bool impossible : {false, true})
        for (const auto& [scale, offset] : {std::pair(1.0f, 0.0f), {30.0f, 0.0f}, {3.0f, 1e4f}}) {
          const Sides s = sides_of(size, scale, offset, impossible);
          sums_add_up(k, s);
          for (float share : {1.0f, 1e-12f, 1e12f})
            mixtures_add_up(k, s, share);
          gradients_follow_the_formulas(k, s, impossible);
        }
    infinite_divergences_are_infinite(k);
    highest_is_the_highest(k);
    what_is_not_finite_shows(k);
  });
  return finish("divergence");
}
