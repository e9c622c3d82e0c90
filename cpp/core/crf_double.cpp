// The CRF kernels in float64, for double inputs: portable lanes, and the exponentials of the C
// library.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "petkit/beam_crf.h"
#include "petkit/crf.h"

namespace petkit {
namespace {

struct Isa {
  static constexpr int width = 8;
  using Real = double;
  struct Float {
    double lane[width];
  };
  struct Mask {
    bool lane[width];
  };

  template <class F> static Float each(F f) {
    Float result;
    for (int i = 0; i < width; ++i)
      result.lane[i] = f(i);
    return result;
  }
  template <class F> static Mask mask_where(F f) {
    Mask result;
    for (int i = 0; i < width; ++i)
      result.lane[i] = f(i);
    return result;
  }

  static Float set(double value) {
    return each([=](int) { return value; });
  }
  static Float load(const double* p) {
    return each([=](int i) { return p[i]; });
  }
  static void store(double* p, const Float& a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static Float add(const Float& a, const Float& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Float sub(const Float& a, const Float& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Float mul(const Float& a, const Float& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Float fma(const Float& a, const Float& b, const Float& c) { return add(mul(a, b), c); }
  static Float max(const Float& a, const Float& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static double highest(const Float& a) {
    double best = a.lane[0];
    for (int i = 1; i < width; ++i)
      best = a.lane[i] > best ? a.lane[i] : best;
    return best;
  }
  static double sum(const Float& a) {
    double total = 0;
    for (double lane : a.lane)
      total += lane;
    return total;
  }
  static Mask greater(const Float& a, const Float& b) {
    return mask_where([&](int i) { return a.lane[i] > b.lane[i]; });
  }
  static Mask unordered(const Float& a) {
    return mask_where([&](int i) { return a.lane[i] != a.lane[i]; });
  }
  static bool any(const Mask& mask) {
    bool found = false;
    for (bool lane : mask.lane)
      found |= lane;
    return found;
  }
  static Float select(const Mask& mask, const Float& set, const Float& clear) {
    return each([&](int i) { return mask.lane[i] ? set.lane[i] : clear.lane[i]; });
  }
};

// As the constants of crf_floats.h, for numbers down to 1e-308.
constexpr double crf_least_sum = 1e-280;
constexpr double crf_largest_exponent = 600;

inline Isa::Float exp_of(const Isa::Float& x) {
  return Isa::each([&](int i) { return __builtin_exp(x.lane[i]); });
}
// -infinity for what is not positive, nan for nan.
inline Isa::Float log_of(const Isa::Float& x) {
  return Isa::each([&](int i) {
    const double lane = x.lane[i];
    return lane <= 0 ? -__builtin_inf() : __builtin_log(lane);
  });
}
inline void read_row(const char* row, DType, double* out, int64_t count) {
  std::memcpy(out, row, size_t(count) * sizeof(double));
}
inline void write_row(const double* row, DType, char* out, int64_t count) {
  std::memcpy(out, row, size_t(count) * sizeof(double));
}
inline double read_one(const char* row, DType, int64_t i) {
  double value;
  std::memcpy(&value, row + i * int64_t(sizeof(double)), sizeof value);
  return value;
}

} // namespace
} // namespace petkit

#include "beam_crf_impl.h"

namespace petkit {

const CrfKernels<double>& crf_double_kernels() {
  static const CrfKernels<double> kernels = [] {
    CrfKernels<double> filled{};
    fill_crf(filled);
    return filled;
  }();
  return kernels;
}

const BeamKernels<double>& beam_double_kernels() {
  static const BeamKernels<double> kernels = [] {
    BeamKernels<double> filled{};
    fill_beam_crf(filled);
    return filled;
  }();
  return kernels;
}

} // namespace petkit
