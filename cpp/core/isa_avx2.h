// AVX2 with FMA and F16C: 8 lanes, masks as vectors of ones and zeros.
#pragma once

namespace petkit {
namespace {

// Of each mask of 8 lanes the places of those that are set, a byte for each.
struct SetLanes {
  uint64_t of[256] = {};
  constexpr SetLanes() {
    for (unsigned mask = 0; mask < 256; ++mask)
      for (unsigned lane = 0, found = 0; lane < 8; ++lane)
        if (mask >> lane & 1)
          of[mask] |= uint64_t(lane) << (8 * found++);
  }
};
constexpr SetLanes set_lanes;

struct Isa {
  static constexpr int width = 8;
  using Real = float;
  using Float = __m256;
  using Int = __m256i;
  using Mask = __m256;

  static Float set(float value) { return _mm256_set1_ps(value); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  // A positive normal number is mantissa * 2**exponent, 1 <= mantissa < 2.
  static Float exponent(Float a) {
    const Int biased = _mm256_srli_epi32(_mm256_castps_si256(a), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)));
  }
  static Float mantissa(Float a) {
    const Int digits = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(digits, _mm256_set1_epi32(0x3f800000)));
  }
  static float sum(Float a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static float highest(Float a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  // a * 2**whole, where biased is whole + 1.5 * 2**23: its last bits are those of whole.
  static Float scale(Float a, Float, Float biased) {
    const Int exponent = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
  }

  static Float abs(Float a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static Mask unordered(Float a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  static bool any(Mask mask) { return _mm256_movemask_ps(mask) != 0; }
  static Mask greater(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static Mask at_least(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static Mask not_at_most(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
  static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  // Stores the lanes of the mask side by side and anything behind them, `width` floats in all;
  // gives how many they are.
  static int64_t compress(float* p, Mask mask, Float a) {
    const unsigned bits = unsigned(_mm256_movemask_ps(mask));
    const Int places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(set_lanes.of[bits])));
    store(p, _mm256_permutevar8x32_ps(a, places));
    return __builtin_popcount(bits);
  }
  // Where the upper 16 bits are these.
  static Mask upper_is(Float a, uint32_t upper) {
    const Int halves = _mm256_srli_epi32(_mm256_castps_si256(a), 16);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(halves, codes(int(upper))));
  }
  // A product's lower 64 bits are low + (cross << 32).
  struct Product {
    Int low, cross;
    Product(Int a, uint64_t b) {
      const Int lower = _mm256_set1_epi64x(int64_t(b)), upper = _mm256_srli_epi64(lower, 32);
      low = _mm256_mul_epu32(a, lower);
      cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), lower),
                               _mm256_mul_epu32(a, upper));
    }
    Int whole() const { return _mm256_add_epi64(low, _mm256_slli_epi64(cross, 32)); }
  };
  // SplitMix64 but for its last step, which leaves the upper bits as they are.
  static Product random_bits(Int state) {
    state = _mm256_xor_si256(state, _mm256_srli_epi64(state, 30));
    state = Product(state, splitmix_first).whole();
    state = _mm256_xor_si256(state, _mm256_srli_epi64(state, 27));
    return Product(state, splitmix_second);
  }
  // Where the upper 24 random bits are not below share; `state` is that of the first lane.
  static Mask dropped(uint64_t state, uint32_t share) {
    constexpr uint64_t step = splitmix_step;
    // So that shuffles within halves of the register bring the lanes in order.
    const Int lanes = _mm256_setr_epi64x(0, int64_t(step), int64_t(4 * step), int64_t(5 * step));
    const Int start = _mm256_set1_epi64x(int64_t(state));
    const Int third = _mm256_set1_epi64x(int64_t(state + 2 * step));
    const Product a = random_bits(_mm256_add_epi64(start, lanes));
    const Product b = random_bits(_mm256_add_epi64(third, lanes));
    const Float carried = _mm256_shuffle_ps(_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(b.low),
                                            _MM_SHUFFLE(3, 1, 3, 1));
    const Float crossed = _mm256_shuffle_ps(_mm256_castsi256_ps(a.cross),
                                            _mm256_castsi256_ps(b.cross), _MM_SHUFFLE(2, 0, 2, 0));
    const Int upper = _mm256_add_epi32(_mm256_castps_si256(carried), _mm256_castps_si256(crossed));
    const Int bits = _mm256_srli_epi32(upper, 32 - splitmix_bits);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(bits, codes(int(share) - 1)));
  }
  static Mask load_mask(const uint8_t* p) {
    const Int bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const Int set = _mm256_and_si256(_mm256_set1_epi32(*p), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
  }
  static void store_mask(uint8_t* p, Mask mask) { *p = uint8_t(_mm256_movemask_ps(mask)); }
  static Float select(Mask mask, Float set, Float clear) {
    return _mm256_blendv_ps(clear, set, mask);
  }
  static Float add_where(Mask mask, Float sum, Float x) { return add(sum, _mm256_and_ps(mask, x)); }

  static Int codes(int value) { return _mm256_set1_epi32(value); }
  static Int or_codes(Int a, Int b) { return _mm256_or_si256(a, b); }
  static Int or_where(Mask mask, Int a, Int b) {
    return _mm256_or_si256(a, _mm256_and_si256(_mm256_castps_si256(mask), b));
  }

  template <int Bits> static Int unpack(const uint8_t* p) {
    if constexpr (Bits == 8) {
      return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    } else {
      int word = 0;
      std::memcpy(&word, p, Bits);
      const Int distance =
          _mm256_setr_epi32(0, Bits, 2 * Bits, 3 * Bits, 4 * Bits, 5 * Bits, 6 * Bits, 7 * Bits);
      return _mm256_and_si256(_mm256_srlv_epi32(codes(word), distance), codes((1 << Bits) - 1));
    }
  }
  template <int Bits> static void pack(Int codes, uint8_t* p) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    __m128i bytes = _mm_packus_epi16(words, words);
    if constexpr (Bits <= 4) {
      bytes = _mm_maddubs_epi16(bytes, _mm_set1_epi16(1 | 1 << (8 + Bits)));
      bytes = _mm_packus_epi16(bytes, bytes);
    }
    if constexpr (Bits == 2) {
      bytes = _mm_maddubs_epi16(bytes, _mm_set1_epi16(1 | 1 << (8 + 2 * Bits)));
      bytes = _mm_packus_epi16(bytes, bytes);
    }
    const int64_t packed = _mm_cvtsi128_si64(bytes);
    std::memcpy(p, &packed, Bits);
  }

  // 2**Bits floats that are looked up by code: in registers while they fit, else in the first-level
  // cache.
  template <int Bits> struct Table {
    Float low, high;
    explicit Table(const float* p) {
      alignas(32) float repeated[16];
      for (int i = 0; i < 16; ++i)
        repeated[i] = p[i & ((1 << Bits) - 1)];
      low = _mm256_load_ps(repeated);
      high = _mm256_load_ps(repeated + 8);
    }
    Float operator[](Int codes) const {
      const Float found = _mm256_permutevar8x32_ps(low, codes);
      if constexpr (Bits < 4)
        return found;
      const Float other = _mm256_permutevar8x32_ps(high, codes);
      return _mm256_blendv_ps(found, other, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
    }
  };

  static Float load_bfloat16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Float load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    const Int bits = _mm256_castps_si256(a);
    const Int odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), codes(1));
    Int rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, codes(0x7fff)));
    rounded = _mm256_srli_epi32(rounded, 16);
    const Int nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, codes(0x7fc0), nan);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static void store_float16(uint16_t* p, Float a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Adds w - pivot and its square to 16 lanes of double sums. No instruction set may fuse or
  // reorder here.
  struct Moments {
    __m256d total[4], squares[4];
    Moments() {
      for (int part = 0; part < 4; ++part)
        total[part] = squares[part] = _mm256_setzero_pd();
    }
    void add(const float* w, double pivot) {
      for (int part = 0; part < 4; ++part) {
        const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(w + 4 * part));
        const __m256d centred = _mm256_sub_pd(wide, _mm256_set1_pd(pivot));
        total[part] = _mm256_add_pd(total[part], centred);
        squares[part] = _mm256_add_pd(squares[part], _mm256_mul_pd(centred, centred));
      }
    }
    void store(double* totals, double* squares_out) const {
      for (int part = 0; part < 4; ++part) {
        _mm256_storeu_pd(totals + 4 * part, total[part]);
        _mm256_storeu_pd(squares_out + 4 * part, squares[part]);
      }
    }
  };
};

template <> struct Isa::Table<8> {
  const float* entries;
  explicit Table(const float* p) : entries(p) {}
  Float operator[](Int codes) const { return _mm256_i32gather_ps(entries, codes, 4); }
};

} // namespace
} // namespace petkit
