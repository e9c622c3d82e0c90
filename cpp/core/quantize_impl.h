// Moments, codes and the straight-through gradient for one instruction set `Isa`.
#pragma once

#include "vector_impl.h"

namespace petkit {
namespace {

Sums moments(const float* w, int64_t count, float pivot) {
  Isa::Moments lanes;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    lanes.add(w + i, pivot);
  if (i < count) {
    // The pivot itself adds nothing to either sum.
    float buffer[16];
    for (float& item : buffer)
      item = pivot;
    std::memcpy(buffer, w + i, size_t(count - i) * sizeof(float));
    lanes.add(buffer, pivot);
  }
  double total[16], squares[16];
  lanes.store(total, squares);
  for (int half = 8; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      total[lane] += total[lane + half];
      squares[lane] += squares[lane + half];
    }
  }
  return {total[0], squares[0]};
}

template <int Bits>
void encode(const float* w, int64_t count, const float* bounds, uint8_t* packed) {
  const Rounding<Bits> rounding(bounds);
  sweep(
      count, [&](int64_t i) { rounding.pack(Isa::load(w + i), packed + i * Bits / 8); },
      [&](int64_t i, int64_t rest) {
        // -inf gets code 0, so the padding is zero.
        uint8_t buffer[W];
        rounding.pack(load_part(w + i, rest, bounds[0]), buffer);
        std::memcpy(packed + i * Bits / 8, buffer, size_t(row_bytes(rest, Bits)));
      });
}

template <int Bits>
void decode(const uint8_t* packed, int64_t count, const float* values, float* out) {
  const Levels<Bits> levels(values);
  sweep(
      count, [&](int64_t i) { Isa::store(out + i, levels.unpack(packed + i * Bits / 8)); },
      [&](int64_t i, int64_t rest) {
        uint8_t buffer[W] = {};
        std::memcpy(buffer, packed + i * Bits / 8, size_t(row_bytes(rest, Bits)));
        store_part(out + i, levels.unpack(buffer), rest);
      });
}

template <int Bits>
void round(const float* w, int64_t count, const float* bounds, const float* values, float* out) {
  const Rounding<Bits> rounding(bounds);
  const Levels<Bits> levels(values);
  sweep(
      count, [&](int64_t i) { Isa::store(out + i, levels(rounding(Isa::load(w + i)))); },
      [&](int64_t i, int64_t rest) {
        store_part(out + i, levels(rounding(load_part(w + i, rest, 0))), rest);
      });
}

template <int Bits>
Sums straight_sums(const Straight& s, const float* w, const float* g, int64_t count) {
  const Rounding<Bits> rounding(s.bounds);
  const Levels<Bits> levels(s.levels);
  const Isa::Float shift = Isa::set(s.shift), inverse = Isa::set(s.inverse);
  Isa::Float total = Isa::set(0), inner = Isa::set(0);
  const auto add = [&](Isa::Float weight, Isa::Float gradient) {
    const Isa::Float normalised = Isa::mul(Isa::sub(weight, shift), inverse);
    const Isa::Float error = Isa::sub(levels(rounding(weight)), normalised);
    total = Isa::add(total, gradient);
    inner = Isa::fma(gradient, error, inner);
  };
  sweep(
      count, [&](int64_t i) { add(Isa::load(w + i), Isa::load(g + i)); },
      [&](int64_t i, int64_t rest) { add(load_part(w + i, rest, 0), load_part(g + i, rest, 0)); });
  return {double(Isa::sum(total)), double(Isa::sum(inner))};
}

void affine(const float* w, const float* g, int64_t count, float shift, const float terms[3],
            float* out) {
  const Isa::Float ratio = Isa::set(terms[0]), offset = Isa::set(terms[1]);
  const Isa::Float slope = Isa::set(terms[2]), mean = Isa::set(shift);
  const auto result = [&](Isa::Float weight, Isa::Float gradient) {
    const Isa::Float spread = Isa::fma(slope, Isa::sub(weight, mean), offset);
    return Isa::fma(ratio, gradient, spread);
  };
  sweep(
      count, [&](int64_t i) { Isa::store(out + i, result(Isa::load(w + i), Isa::load(g + i))); },
      [&](int64_t i, int64_t rest) {
        const Isa::Float part = result(load_part(w + i, rest, 0), load_part(g + i, rest, 0));
        store_part(out + i, part, rest);
      });
}

void fill_quantize(Kernels& k) {
  k.to_float = to_float;
  k.from_float = from_float;
  k.moments = moments;
  k.affine = affine;
  const auto set = [](auto& slots, auto one, auto two, auto four, auto eight) {
    slots[0] = one, slots[1] = two, slots[2] = four, slots[3] = eight;
  };
  set(k.encode, encode<1>, encode<2>, encode<4>, encode<8>);
  set(k.decode, decode<1>, decode<2>, decode<4>, decode<8>);
  set(k.round, round<1>, round<2>, round<4>, round<8>);
  set(k.straight_sums, straight_sums<1>, straight_sums<2>, straight_sums<4>, straight_sums<8>);
}

} // namespace
} // namespace petkit
