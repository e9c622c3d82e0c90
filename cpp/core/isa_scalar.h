// Portable stand-in for a vector unit: 8 lanes in plain loops, which compilers vectorise as they
// can.
#pragma once

namespace petkit {
namespace {

struct Isa {
  static constexpr int width = 8;
  using Real = float;
  struct Float {
    float lane[width];
  };
  struct Int {
    int32_t lane[width];
  };
  // A lane is all ones or all zeros, as compilers do comparisons in vectors.
  struct Mask {
    uint32_t lane[width];
  };

  template <class F> static Float each(F f) {
    Float result;
    for (int i = 0; i < width; ++i)
      result.lane[i] = f(i);
    return result;
  }

  template <class F> static Mask mask_where(F f) {
    Mask mask;
    for (int i = 0; i < width; ++i)
      mask.lane[i] = f(i) ? 0xffffffff : 0;
    return mask;
  }

  static Float set(float value) {
    return each([=](int) { return value; });
  }
  static Float load(const float* p) {
    return each([=](int i) { return p[i]; });
  }
  static void store(float* p, Float a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static Float add(Float a, Float b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Float sub(Float a, Float b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Float mul(Float a, Float b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Float fma(Float a, Float b, Float c) { return add(mul(a, b), c); }
  static Float div(Float a, Float b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // A positive normal number is mantissa * 2**exponent, 1 <= mantissa < 2.
  static Float exponent(Float a) {
    return each([&](int i) { return float(int32_t(bits_of(a.lane[i]) >> 23) - 127); });
  }
  static Float mantissa(Float a) {
    return each([&](int i) { return float_of((bits_of(a.lane[i]) & 0x7fffff) | 0x3f800000); });
  }
  static float sum(Float a) {
    const float* p = a.lane;
    return ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
  }
  static Float max(Float a, Float b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static float highest(Float a) {
    for (int i = 1; i < width; ++i)
      a.lane[0] = a.lane[i] > a.lane[0] ? a.lane[i] : a.lane[0];
    return a.lane[0];
  }
  // a * 2**whole, where biased is whole + 1.5 * 2**23: its last bits are those of whole.
  static Float scale(Float a, Float, Float biased) {
    return each(
        [&](int i) { return float_of(bits_of(a.lane[i]) + (bits_of(biased.lane[i]) << 23)); });
  }

  static Float abs(Float a) {
    return each([&](int i) { return float_of(bits_of(a.lane[i]) & 0x7fffffff); });
  }
  static Mask unordered(Float a) {
    return mask_where([&](int i) { return a.lane[i] != a.lane[i]; });
  }
  static bool any(Mask mask) {
    uint32_t all = 0;
    for (uint32_t lane : mask.lane)
      all |= lane;
    return all != 0;
  }
  static Mask greater(Float a, Float b) {
    return mask_where([&](int i) { return a.lane[i] > b.lane[i]; });
  }
  static Mask at_least(Float a, Float b) {
    return mask_where([&](int i) { return a.lane[i] >= b.lane[i]; });
  }
  static Mask not_at_most(Float a, Float b) {
    return mask_where([&](int i) { return !(a.lane[i] <= b.lane[i]); });
  }
  static Mask either(Mask a, Mask b) {
    for (int i = 0; i < width; ++i)
      a.lane[i] |= b.lane[i];
    return a;
  }
  static Mask both(Mask a, Mask b) {
    for (int i = 0; i < width; ++i)
      a.lane[i] &= b.lane[i];
    return a;
  }
  // Stores the lanes of the mask side by side and anything behind them, at most `width` floats in
  // all; gives how many they are.
  static int64_t compress(float* p, Mask mask, Float a) {
    if (!any(mask))
      return 0;
    int64_t found = 0;
    for (int i = 0; i < width; ++i) {
      p[found] = a.lane[i];
      found += mask.lane[i] & 1;
    }
    return found;
  }
  // Where the upper 16 bits are these.
  static Mask upper_is(Float a, uint32_t upper) {
    return mask_where([&](int i) { return bits_of(a.lane[i]) >> 16 == upper; });
  }
  // Where the upper 24 random bits are not below share; `state` is that of the first lane.
  static Mask dropped(uint64_t state, uint32_t share) {
    return mask_where([=](int i) {
      return splitmix(state + uint64_t(i) * splitmix_step) >> (64 - splitmix_bits) >= share;
    });
  }
  static Mask load_mask(const uint8_t* p) {
    const uint32_t byte = *p;
    return mask_where([=](int i) { return (byte & (1u << i)) != 0; });
  }
  static void store_mask(uint8_t* p, Mask mask) {
    uint32_t byte = 0;
    for (int i = 0; i < width; ++i)
      byte |= mask.lane[i] & (1u << i);
    *p = uint8_t(byte);
  }
  static Float select(Mask mask, Float set, Float clear) {
    return each([&](int i) {
      return float_of((bits_of(set.lane[i]) & mask.lane[i]) |
                      (bits_of(clear.lane[i]) & ~mask.lane[i]));
    });
  }
  static Float add_where(Mask mask, Float sum, Float x) {
    return each([&](int i) { return sum.lane[i] + float_of(bits_of(x.lane[i]) & mask.lane[i]); });
  }

  static Int codes(int value) {
    Int result;
    for (int32_t& lane : result.lane)
      lane = value;
    return result;
  }
  static Int or_codes(Int a, Int b) {
    for (int i = 0; i < width; ++i)
      a.lane[i] |= b.lane[i];
    return a;
  }
  static Int or_where(Mask mask, Int a, Int b) {
    for (int i = 0; i < width; ++i)
      a.lane[i] |= int32_t(mask.lane[i]) & b.lane[i];
    return a;
  }

  template <int Bits> static Int unpack(const uint8_t* p) {
    Int result;
    for (int i = 0; i < width; ++i)
      result.lane[i] = int32_t(read_code(p, i, Bits));
    return result;
  }
  template <int Bits> static void pack(Int codes, uint8_t* p) {
    for (int i = 0; i < width; i += 8 / Bits) {
      int byte = 0;
      for (int j = 0; j < 8 / Bits; ++j)
        byte |= codes.lane[i + j] << (j * Bits);
      p[i * Bits / 8] = uint8_t(byte);
    }
  }

  // 2**Bits floats that are looked up by code.
  template <int Bits> struct Table {
    const float* entries;
    explicit Table(const float* p) : entries(p) {}
    Float operator[](Int codes) const {
      return each([&](int i) { return entries[codes.lane[i]]; });
    }
  };

  static Float load_bfloat16(const uint16_t* p) {
    return each([=](int i) { return from_bfloat16(p[i]); });
  }
  static Float load_float16(const uint16_t* p) {
    return each([=](int i) { return from_float16(p[i]); });
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    for (int i = 0; i < width; ++i)
      p[i] = to_bfloat16(a.lane[i]);
  }
  static void store_float16(uint16_t* p, Float a) {
    for (int i = 0; i < width; ++i)
      p[i] = to_float16(a.lane[i]);
  }

  // Adds w - pivot and its square to 16 lanes of double sums. No instruction set may fuse or
  // reorder here.
  struct Moments {
    double total[16] = {}, squares[16] = {};
    void add(const float* w, double pivot) {
      for (int i = 0; i < 16; ++i) {
        const double centred = double(w[i]) - pivot;
        total[i] += centred;
        squares[i] += centred * centred;
      }
    }
    void store(double* totals, double* squares_out) const {
      std::memcpy(totals, total, sizeof total);
      std::memcpy(squares_out, squares, sizeof squares);
    }
  };
};

} // namespace
} // namespace petkit
