// Exponentials and logarithms for one instruction set `Isa` of float32 lanes.
#pragma once

namespace petkit {
namespace {

// Below 2**-125 nothing counts, and every intermediate value stays a normal number.
constexpr float least_exponent = -125.0f;

// 2**d for d between least_exponent and 0, to 2e-7 of its size, and exactly 1 for 0: the integer
// part goes into the exponent, a polynomial of degree 5 (minimax on [-1/2, 1/2]) does the rest.
inline Isa::Float power_of_two(Isa::Float d) {
  const Isa::Float magic = Isa::set(12582912.0f); // 1.5 * 2**23: its sums are rounded to integers
  const Isa::Float biased = Isa::add(d, magic);
  const Isa::Float whole = Isa::sub(biased, magic);
  const Isa::Float part = Isa::sub(d, whole);
  Isa::Float power = Isa::set(1.3264727e-3f);
  power = Isa::fma(power, part, Isa::set(9.671513e-3f));
  power = Isa::fma(power, part, Isa::set(5.5507336e-2f));
  power = Isa::fma(power, part, Isa::set(2.4022242e-1f));
  power = Isa::fma(power, part, Isa::set(6.93147e-1f));
  power = Isa::fma(power, part, Isa::set(1.0f));
  return Isa::scale(power, whole, biased);
}

// exp(x) for x up to 80, to 2e-7 of its size; 0 below -86, and nan for nan.
inline Isa::Float exp_of(Isa::Float x) {
  const Isa::Float log2_e = Isa::set(1.44269504f), least = Isa::set(least_exponent);
  const Isa::Float d = Isa::mul(x, log2_e);
  const Isa::Mask nothing = Isa::greater(least, d);
  // What the product and the constant have rounded away.
  Isa::Float lost = Isa::fma(x, log2_e, Isa::sub(Isa::set(0), d));
  lost = Isa::fma(x, Isa::set(1.92596299e-8f), lost);
  const Isa::Float power = power_of_two(Isa::select(nothing, least, d));
  const Isa::Float result = Isa::fma(Isa::mul(power, Isa::set(0.693147181f)), lost, power);
  return Isa::select(nothing, Isa::set(0), result);
}

// log(x) to 1e-7, -infinity for what is no positive normal number, nan for nan. With
// s = (m - 1) / (m + 1), the logarithm of a mantissa m is 2 (s + s**3 / 3 + s**5 / 5 + ...).
inline Isa::Float log_of(Isa::Float x) {
  const Isa::Float one = Isa::set(1);
  Isa::Float exponent = Isa::exponent(x), mantissa = Isa::mantissa(x);
  // Between sqrt(1/2) and sqrt(2), |s| stays below 0.172.
  const Isa::Mask high = Isa::greater(mantissa, Isa::set(1.41421356f));
  mantissa = Isa::select(high, Isa::mul(mantissa, Isa::set(0.5f)), mantissa);
  exponent = Isa::select(high, Isa::add(exponent, one), exponent);
  const Isa::Float s = Isa::div(Isa::sub(mantissa, one), Isa::add(mantissa, one));
  const Isa::Float square = Isa::mul(s, s);
  Isa::Float series = Isa::fma(square, Isa::set(2.0f / 9), Isa::set(2.0f / 7));
  series = Isa::fma(square, series, Isa::set(2.0f / 5));
  series = Isa::fma(square, series, Isa::set(2.0f / 3));
  const Isa::Float log_mantissa = Isa::fma(Isa::mul(square, s), series, Isa::add(s, s));
  const Isa::Float result = Isa::fma(exponent, Isa::set(0.693147181f), log_mantissa);
  const Isa::Mask positive = Isa::greater(x, Isa::set(1.17549421e-38f));
  const Isa::Float finite = Isa::select(positive, result, Isa::set(-__builtin_inff()));
  return Isa::select(Isa::unordered(x), x, finite);
}

} // namespace
} // namespace petkit
