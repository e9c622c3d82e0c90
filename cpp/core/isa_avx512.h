// AVX-512 (F, BW, DQ, VL): 16 lanes, masks in their own registers.
#pragma once

namespace petkit {
namespace {

struct Isa {
  static constexpr int width = 16;
  using Real = float;
  using Float = __m512;
  using Int = __m512i;
  using Mask = __mmask16;

  static Float set(float value) { return _mm512_set1_ps(value); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  // A positive normal number is mantissa * 2**exponent, 1 <= mantissa < 2.
  static Float exponent(Float a) { return _mm512_getexp_ps(a); }
  static Float mantissa(Float a) {
    return _mm512_getmant_ps(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  }
  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static float highest(Float a) { return _mm512_reduce_max_ps(a); }
  // a * 2**whole, where biased is whole + 1.5 * 2**23.
  static Float scale(Float a, Float whole, Float) { return _mm512_scalef_ps(a, whole); }

  static Float abs(Float a) { return _mm512_abs_ps(a); }

  static Mask unordered(Float a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static bool any(Mask mask) { return mask != 0; }

  static Mask greater(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static Mask at_least(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static Mask not_at_most(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
  static Mask either(Mask a, Mask b) { return Mask(a | b); }
  static Mask both(Mask a, Mask b) { return Mask(a & b); }
  // Stores the lanes of the mask side by side and anything behind them, `width` floats in all;
  // gives how many they are.
  static int64_t compress(float* p, Mask mask, Float a) {
    store(p, _mm512_maskz_compress_ps(mask, a));
    return __builtin_popcount(mask);
  }
  // Where the upper 16 bits are these.
  static Mask upper_is(Float a, uint32_t upper) {
    const Int halves = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
    return _mm512_cmpeq_epi32_mask(halves, codes(int(upper)));
  }
  // SplitMix64 but for its last step, which leaves the upper bits as they are.
  static Int random_bits(Int state) {
    const Int first = _mm512_set1_epi64(int64_t(splitmix_first));
    const Int second = _mm512_set1_epi64(int64_t(splitmix_second));
    state = _mm512_mullo_epi64(_mm512_xor_si512(state, _mm512_srli_epi64(state, 30)), first);
    return _mm512_mullo_epi64(_mm512_xor_si512(state, _mm512_srli_epi64(state, 27)), second);
  }
  // Where the upper 24 random bits are not below share < 2**24; `state` is that of the first lane.
  static Mask dropped(uint64_t state, uint32_t share) {
    constexpr uint64_t step = splitmix_step;
    const Int first =
        _mm512_setr_epi64(0, int64_t(step), int64_t(2 * step), int64_t(3 * step), int64_t(4 * step),
                          int64_t(5 * step), int64_t(6 * step), int64_t(7 * step));
    const Int limit = _mm512_set1_epi64(int64_t(uint64_t(share) << (64 - splitmix_bits)));
    const Int low = _mm512_add_epi64(_mm512_set1_epi64(int64_t(state)), first);
    const Int high = _mm512_add_epi64(_mm512_set1_epi64(int64_t(state + 8 * step)), first);
    const unsigned eight = _mm512_cmpge_epu64_mask(random_bits(low), limit);
    return Mask(eight | unsigned(_mm512_cmpge_epu64_mask(random_bits(high), limit)) << 8);
  }
  static Mask load_mask(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return Mask(bits);
  }
  static void store_mask(uint8_t* p, Mask mask) {
    const uint16_t bits = uint16_t(mask);
    std::memcpy(p, &bits, sizeof bits);
  }
  static Float select(Mask mask, Float set, Float clear) {
    return _mm512_mask_blend_ps(mask, clear, set);
  }
  static Float add_where(Mask mask, Float sum, Float x) {
    return _mm512_mask_add_ps(sum, mask, sum, x);
  }

  static Int codes(int value) { return _mm512_set1_epi32(value); }
  static Int or_codes(Int a, Int b) { return _mm512_or_si512(a, b); }
  static Int or_where(Mask mask, Int a, Int b) { return _mm512_mask_or_epi32(a, mask, a, b); }

  template <int Bits> static Int unpack(const uint8_t* p) {
    if constexpr (Bits == 8) {
      return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    } else {
      // Every lane gets the four bytes that hold its code, then shifts them down by its own
      // distance.
      int words[2] = {0, 0};
      std::memcpy(words, p, 2 * Bits);
      const Int low = _mm512_set1_epi32(words[0]);
      const Int source = Bits == 4 ? _mm512_mask_set1_epi32(low, 0xff00, words[1]) : low;
      constexpr int step = Bits, wrap = Bits == 4 ? 0 : 8 * Bits;
      const Int distance =
          _mm512_setr_epi32(0, step, 2 * step, 3 * step, 4 * step, 5 * step, 6 * step, 7 * step,
                            wrap, wrap + step, wrap + 2 * step, wrap + 3 * step, wrap + 4 * step,
                            wrap + 5 * step, wrap + 6 * step, wrap + 7 * step);
      return _mm512_and_si512(_mm512_srlv_epi32(source, distance), codes((1 << Bits) - 1));
    }
  }
  template <int Bits> static void pack(Int codes, uint8_t* p) {
    const __m128i bytes = _mm512_cvtepi32_epi8(codes);
    if constexpr (Bits == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    } else if constexpr (Bits == 4) {
      const __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(1 | 16 << 8));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtepi16_epi8(pairs));
    } else {
      const __m128i pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(1 | 4 << 8));
      const __m128i quads = _mm_madd_epi16(pairs, _mm_set1_epi32(1 | 16 << 16));
      const int word = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(quads));
      std::memcpy(p, &word, sizeof word);
    }
  }

  // 2**Bits floats that are looked up by code: in a register while they fit, else in the
  // first-level cache.
  template <int Bits> struct Table {
    Float entries;
    explicit Table(const float* p) {
      alignas(64) float repeated[width];
      for (int i = 0; i < width; ++i)
        repeated[i] = p[i & ((1 << Bits) - 1)];
      entries = _mm512_load_ps(repeated);
    }
    Float operator[](Int codes) const { return _mm512_permutexvar_ps(codes, entries); }
  };

  static Float load_bfloat16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Float load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    const Int bits = _mm512_castps_si512(a);
    const Int odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), codes(1));
    Int rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, codes(0x7fff)));
    rounded = _mm512_srli_epi32(rounded, 16);
    const Mask nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_set1_epi32(rounded, nan, 0x7fc0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }
  static void store_float16(uint16_t* p, Float a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Adds w - pivot and its square to 16 lanes of double sums. No instruction set may fuse or
  // reorder here.
  struct Moments {
    __m512d total[2], squares[2];
    // Written out because GCC compiles an implicit constructor for the build's own instruction set.
    Moments() {
      for (int half = 0; half < 2; ++half)
        total[half] = squares[half] = _mm512_setzero_pd();
    }
    void add(const float* w, double pivot) {
      for (int half = 0; half < 2; ++half) {
        const __m512d wide = _mm512_cvtps_pd(_mm256_loadu_ps(w + 8 * half));
        const __m512d centred = _mm512_sub_pd(wide, _mm512_set1_pd(pivot));
        total[half] = _mm512_add_pd(total[half], centred);
        squares[half] = _mm512_add_pd(squares[half], _mm512_mul_pd(centred, centred));
      }
    }
    void store(double* totals, double* squares_out) const {
      for (int half = 0; half < 2; ++half) {
        _mm512_storeu_pd(totals + 8 * half, total[half]);
        _mm512_storeu_pd(squares_out + 8 * half, squares[half]);
      }
    }
  };
};

template <> struct Isa::Table<8> {
  const float* entries;
  explicit Table(const float* p) : entries(p) {}
  Float operator[](Int codes) const {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, codes, entries, 4);
  }
};

} // namespace
} // namespace petkit
