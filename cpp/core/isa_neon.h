// NEON of AArch64: 8 lanes in pairs of registers.
#pragma once

namespace petkit {
namespace {

struct Isa {
  static constexpr int width = 8;
  using Real = float;
  struct Float {
    float32x4_t low, high;
  };
  struct Int {
    uint32x4_t low, high;
  };
  using Mask = Int;

  static Float set(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  static Float load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static void store(float* p, Float a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
  }
  static Float add(Float a, Float b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
  }
  static Float sub(Float a, Float b) {
    return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
  }
  static Float mul(Float a, Float b) {
    return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
  }
  static Float fma(Float a, Float b, Float c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static Float div(Float a, Float b) {
    return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
  }
  // A positive normal number is mantissa * 2**exponent, 1 <= mantissa < 2.
  static float32x4_t exponent(float32x4_t a) {
    const int32x4_t biased = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(a), 23));
    return vcvtq_f32_s32(vsubq_s32(biased, vdupq_n_s32(127)));
  }
  static Float exponent(Float a) { return {exponent(a.low), exponent(a.high)}; }
  static float32x4_t mantissa(float32x4_t a) {
    const uint32x4_t digits = vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x7fffff));
    return vreinterpretq_f32_u32(vorrq_u32(digits, vdupq_n_u32(0x3f800000)));
  }
  static Float mantissa(Float a) { return {mantissa(a.low), mantissa(a.high)}; }
  static float sum(Float a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
  static Float max(Float a, Float b) {
    return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)};
  }
  static float highest(Float a) { return vmaxvq_f32(vmaxq_f32(a.low, a.high)); }
  // a * 2**whole, where biased is whole + 1.5 * 2**23: its last bits are those of whole.
  static float32x4_t scale(float32x4_t a, float32x4_t biased) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(biased), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), exponent));
  }
  static Float scale(Float a, Float, Float biased) {
    return {scale(a.low, biased.low), scale(a.high, biased.high)};
  }

  static Float abs(Float a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
  static Mask unordered(Float a) {
    return {vmvnq_u32(vceqq_f32(a.low, a.low)), vmvnq_u32(vceqq_f32(a.high, a.high))};
  }
  static bool any(Mask mask) { return vmaxvq_u32(vorrq_u32(mask.low, mask.high)) != 0; }
  static Mask greater(Float a, Float b) {
    return {vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)};
  }
  static Mask at_least(Float a, Float b) {
    return {vcgeq_f32(a.low, b.low), vcgeq_f32(a.high, b.high)};
  }
  static Mask not_at_most(Float a, Float b) {
    return {vmvnq_u32(vcleq_f32(a.low, b.low)), vmvnq_u32(vcleq_f32(a.high, b.high))};
  }
  static Mask either(Mask a, Mask b) { return or_codes(a, b); }
  static Mask both(Mask a, Mask b) { return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)}; }
  // Stores the lanes of the mask side by side and anything behind them, at most `width` floats in
  // all; gives how many they are.
  static int64_t compress(float* p, Mask mask, Float a) {
    if (!any(mask))
      return 0;
    float lane[width];
    uint32_t set[width];
    store(lane, a);
    vst1q_u32(set, mask.low);
    vst1q_u32(set + 4, mask.high);
    int64_t found = 0;
    for (int i = 0; i < width; ++i) {
      p[found] = lane[i];
      found += set[i] & 1;
    }
    return found;
  }
  // Where the upper 16 bits are these.
  static uint32x4_t upper_is(float32x4_t a, uint32_t upper) {
    return vceqq_u32(vshrq_n_u32(vreinterpretq_u32_f32(a), 16), vdupq_n_u32(upper));
  }
  static Mask upper_is(Float a, uint32_t upper) {
    return {upper_is(a.low, upper), upper_is(a.high, upper)};
  }
  // Where the upper 24 random bits are not below share; `state` is that of the first lane. There is
  // no product of 64 bits in vectors.
  static Mask dropped(uint64_t state, uint32_t share) {
    uint32_t bits[width];
    for (int i = 0; i < width; ++i)
      bits[i] = uint32_t(splitmix(state + uint64_t(i) * splitmix_step) >> (64 - splitmix_bits));
    const uint32x4_t least = vdupq_n_u32(share);
    return {vcgeq_u32(vld1q_u32(bits), least), vcgeq_u32(vld1q_u32(bits + 4), least)};
  }
  static Int lane_bits() {
    const uint32_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return {vld1q_u32(bits), vld1q_u32(bits + 4)};
  }
  static Mask load_mask(const uint8_t* p) {
    const Int bit = lane_bits();
    const uint32x4_t byte = vdupq_n_u32(*p);
    return {vtstq_u32(byte, bit.low), vtstq_u32(byte, bit.high)};
  }
  static void store_mask(uint8_t* p, Mask mask) {
    const Int bit = lane_bits();
    const uint32x4_t four = vorrq_u32(vandq_u32(mask.low, bit.low), vandq_u32(mask.high, bit.high));
    *p = uint8_t(vaddvq_u32(four));
  }
  static Float select(Mask mask, Float set, Float clear) {
    return {vbslq_f32(mask.low, set.low, clear.low), vbslq_f32(mask.high, set.high, clear.high)};
  }
  static Float add_where(Mask mask, Float sum, Float x) {
    return add(sum, select(mask, x, set(0)));
  }

  static Int codes(int value) {
    const uint32x4_t all = vdupq_n_u32(uint32_t(value));
    return {all, all};
  }
  static Int or_codes(Int a, Int b) { return {vorrq_u32(a.low, b.low), vorrq_u32(a.high, b.high)}; }
  static Int or_where(Mask mask, Int a, Int b) {
    return or_codes(a, {vandq_u32(mask.low, b.low), vandq_u32(mask.high, b.high)});
  }

  template <int Bits> static Int unpack(const uint8_t* p) {
    if constexpr (Bits == 8) {
      const uint16x8_t words = vmovl_u8(vld1_u8(p));
      return {vmovl_u16(vget_low_u16(words)), vmovl_u16(vget_high_u16(words))};
    } else {
      uint32_t word = 0;
      std::memcpy(&word, p, Bits);
      const int32_t left[8] = {0,         -Bits,     -2 * Bits, -3 * Bits,
                               -4 * Bits, -5 * Bits, -6 * Bits, -7 * Bits};
      const uint32x4_t source = vdupq_n_u32(word), mask = vdupq_n_u32((1 << Bits) - 1);
      return {vandq_u32(vshlq_u32(source, vld1q_s32(left)), mask),
              vandq_u32(vshlq_u32(source, vld1q_s32(left + 4)), mask)};
    }
  }
  template <int Bits> static void pack(Int codes, uint8_t* p) {
    uint32_t lane[width];
    vst1q_u32(lane, codes.low);
    vst1q_u32(lane + 4, codes.high);
    uint64_t packed = 0;
    for (int i = 0; i < width; ++i)
      packed |= uint64_t(lane[i]) << (i * Bits);
    std::memcpy(p, &packed, Bits);
  }

  // 2**Bits floats that are looked up by code: as 64 bytes in registers while they fit, else in
  // memory.
  template <int Bits> struct Table {
    uint8x16x4_t entries;
    explicit Table(const float* p) {
      float repeated[16];
      for (int i = 0; i < 16; ++i)
        repeated[i] = p[i & ((1 << Bits) - 1)];
      for (int i = 0; i < 4; ++i)
        entries.val[i] = vreinterpretq_u8_f32(vld1q_f32(repeated + 4 * i));
    }
    float32x4_t find(uint32x4_t codes) const {
      // Byte k of entry c lies at 4 c + k.
      const uint32x4_t places = vmlaq_n_u32(vdupq_n_u32(0x03020100), codes, 0x04040404);
      return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_u32(places)));
    }
    Float operator[](Int codes) const { return {find(codes.low), find(codes.high)}; }
  };

  static float32x4_t widen(uint16x4_t half) { return vreinterpretq_f32_u32(vshll_n_u16(half, 16)); }
  static Float load_bfloat16(const uint16_t* p) {
    const uint16x8_t half = vld1q_u16(p);
    return {widen(vget_low_u16(half)), widen(vget_high_u16(half))};
  }
  static Float load_float16(const uint16_t* p) {
    const uint16x8_t half = vld1q_u16(p);
    return {vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half))),
            vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half)))};
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    float lane[width];
    store(lane, a);
    for (int i = 0; i < width; ++i)
      p[i] = to_bfloat16(lane[i]);
  }
  static void store_float16(uint16_t* p, Float a) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.low)));
    vst1_u16(p + 4, vreinterpret_u16_f16(vcvt_f16_f32(a.high)));
  }

  // Adds w - pivot and its square to 16 lanes of double sums. No instruction set may fuse or
  // reorder here.
  struct Moments {
    float64x2_t total[8], squares[8];
    Moments() {
      for (int part = 0; part < 8; ++part)
        total[part] = squares[part] = vdupq_n_f64(0);
    }
    void add(const float* w, double pivot) {
      for (int part = 0; part < 8; ++part) {
        const float64x2_t wide = vcvt_f64_f32(vld1_f32(w + 2 * part));
        const float64x2_t centred = vsubq_f64(wide, vdupq_n_f64(pivot));
        total[part] = vaddq_f64(total[part], centred);
        squares[part] = vaddq_f64(squares[part], vmulq_f64(centred, centred));
      }
    }
    void store(double* totals, double* squares_out) const {
      for (int part = 0; part < 8; ++part) {
        vst1q_f64(totals + 2 * part, total[part]);
        vst1q_f64(squares_out + 2 * part, squares[part]);
      }
    }
  };
};

template <> struct Isa::Table<8> {
  const float* entries;
  explicit Table(const float* p) : entries(p) {}
  Float operator[](Int codes) const {
    uint32_t code[width];
    float lane[width];
    vst1q_u32(code, codes.low);
    vst1q_u32(code + 4, codes.high);
    for (int i = 0; i < width; ++i)
      lane[i] = entries[code[i]];
    return load(lane);
  }
};

} // namespace
} // namespace petkit
