// Conversions of bfloat16 and float16: every pattern, and rounding at every boundary between
// neighbours.
#include "check.h"
#include "petkit/half.h"

using namespace petkit;

namespace {

struct Format {
  const char* name;
  DType dtype;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
  int exponent_bits;
};

const Format formats[] = {{"bfloat16", DType::bfloat16, from_bfloat16, to_bfloat16, 8},
                          {"float16", DType::float16, from_float16, to_float16, 5}};

// The value by the definition: sign, exponent and mantissa.
double value_of(const Format& f, uint16_t pattern) {
  const int mantissa_bits = 15 - f.exponent_bits, bias = (1 << (f.exponent_bits - 1)) - 1;
  const int exponent = (pattern >> mantissa_bits) & ((1 << f.exponent_bits) - 1);
  const double mantissa = double(pattern & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
  return pattern & 0x8000 ? -magnitude : magnitude;
}

bool is_finite(const Format& f, uint16_t pattern) {
  const int all = (1 << f.exponent_bits) - 1;
  return ((pattern >> (15 - f.exponent_bits)) & all) != all;
}

void every_pattern_survives(const Format& f) {
  for (unsigned pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t half = uint16_t(pattern);
    const float wide = f.widen(half);
    if (is_finite(f, half)) {
      CHECK(double(wide) == value_of(f, half), "%s %04x", f.name, pattern);
      CHECK(f.narrow(wide) == half, "%s %04x back", f.name, pattern);
    } else {
      CHECK(!std::isfinite(wide) && !std::isfinite(f.widen(f.narrow(wide))), "%s %04x", f.name,
            pattern);
      CHECK(std::isnan(wide) == std::isnan(f.widen(f.narrow(wide))), "%s %04x nan", f.name,
            pattern);
    }
  }
}

void halfway_goes_to_even(const Format& f) {
  for (unsigned pattern = 0; pattern < 32767; ++pattern) {
    const uint16_t low = uint16_t(pattern), high = uint16_t(pattern + 1);
    if (!is_finite(f, low) || !is_finite(f, high))
      continue;
    const float middle = float((value_of(f, low) + value_of(f, high)) / 2);
    CHECK(f.narrow(middle) == (pattern % 2 == 0 ? low : high), "%s %04x", f.name, pattern);
    CHECK(f.narrow(std::nextafterf(middle, INFINITY)) == high, "%s above %04x", f.name, pattern);
    CHECK(f.narrow(std::nextafterf(middle, 0)) == low, "%s below %04x", f.name, pattern);
  }
  CHECK(std::isinf(f.widen(f.narrow(3.4028235e38f))), "%s overflow", f.name);
}

// Vector units convert like the portable code, whatever the position in a span.
void kernels_agree(const Kernels& k, const Format& f) {
  for (int count : {1, 7, 8, 9, 33}) {
    for (unsigned start = 0; start < 65536; start += 97) {
      std::vector<uint16_t> half(static_cast<size_t>(count));
      for (int i = 0; i < count; ++i)
        half[size_t(i)] = uint16_t(start + unsigned(i) * 1021);
      std::vector<float> wide(half.size());
      std::vector<uint16_t> back(half.size());
      k.to_float(half.data(), f.dtype, wide.data(), count);
      for (int i = 0; i < count; ++i)
        CHECK(wide[size_t(i)] == f.widen(half[size_t(i)]) || std::isnan(wide[size_t(i)]), "%s",
              k.name);
      for (float& value : wide)
        value = std::isnan(value) ? value : value * 1.0004f;
      k.from_float(wide.data(), f.dtype, back.data(), count);
      for (int i = 0; i < count; ++i)
        CHECK(back[size_t(i)] == f.narrow(wide[size_t(i)]) || std::isnan(wide[size_t(i)]), "%s %s",
              k.name, f.name);
    }
  }
}

} // namespace

int main() {
  for (const Format& format : formats) {
    every_pattern_survives(format);
    halfway_goes_to_even(format);
    with_each_kernels([&](const Kernels& k) { kernels_agree(k, format); });
  }
  return finish("half");
}
