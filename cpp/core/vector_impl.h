// What the kernels of one instruction set `Isa` share: tails, dtypes, rounding to codes and back.
#pragma once

namespace petkit {
namespace {

constexpr int W = Isa::width;
constexpr int64_t unrolled = W == 16 ? 4 : 2; // vectors in flight, as many as registers hold

// Calls `full(offset)` for whole vectors of W items and `partial(offset, count)` for what is left.
template <class Full, class Partial>
inline void sweep(int64_t count, const Full& full, const Partial& partial) {
  int64_t offset = 0;
  for (; offset + W <= count; offset += W)
    full(offset);
  if (offset < count)
    partial(offset, count - offset);
}

// Loads `count` < W floats; the other lanes hold `fill`.
inline Isa::Float load_part(const float* p, int64_t count, float fill) {
  float buffer[W];
  for (int i = 0; i < W; ++i)
    buffer[i] = fill;
  std::memcpy(buffer, p, size_t(count) * sizeof(float));
  return Isa::load(buffer);
}

inline void store_part(float* p, Isa::Float a, int64_t count) {
  float buffer[W];
  Isa::store(buffer, a);
  std::memcpy(p, buffer, size_t(count) * sizeof(float));
}

inline Isa::Float load_half(const uint16_t* p, DType dtype) {
  return dtype == DType::bfloat16 ? Isa::load_bfloat16(p) : Isa::load_float16(p);
}

inline void store_half(uint16_t* p, DType dtype, Isa::Float a) {
  if (dtype == DType::bfloat16)
    Isa::store_bfloat16(p, a);
  else
    Isa::store_float16(p, a);
}

inline void to_float(const void* source, DType dtype, float* target, int64_t count) {
  if (dtype == DType::float32) {
    std::memcpy(target, source, size_t(count) * sizeof(float));
    return;
  }
  const uint16_t* half = static_cast<const uint16_t*>(source);
  sweep(
      count, [&](int64_t i) { Isa::store(target + i, load_half(half + i, dtype)); },
      [&](int64_t i, int64_t rest) {
        uint16_t buffer[W] = {};
        std::memcpy(buffer, half + i, size_t(rest) * sizeof(uint16_t));
        store_part(target + i, load_half(buffer, dtype), rest);
      });
}

inline void from_float(const float* source, DType dtype, void* target, int64_t count) {
  if (dtype == DType::float32) {
    std::memcpy(target, source, size_t(count) * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(target);
  sweep(
      count, [&](int64_t i) { store_half(half + i, dtype, Isa::load(source + i)); },
      [&](int64_t i, int64_t rest) {
        uint16_t buffer[W];
        store_half(buffer, dtype, load_part(source + i, rest, 0));
        std::memcpy(half + i, buffer, size_t(rest) * sizeof(uint16_t));
      });
}

// Numbers of one dtype in memory, as vectors.
template <DType D> struct Items {
  static Isa::Float load(const char* p, int64_t i) {
    if constexpr (D == DType::float32)
      return Isa::load(reinterpret_cast<const float*>(p) + i);
    else
      return load_half(reinterpret_cast<const uint16_t*>(p) + i, D);
  }
  // The lanes behind the first `count` hold `fill`.
  static Isa::Float load_part(const char* p, int64_t i, int64_t count, float fill) {
    float buffer[W];
    to_float(p + i * item_size(D), D, buffer, count);
    return petkit::load_part(buffer, count, fill);
  }
};

template <class Visit> inline void visit_dtype(DType dtype, const Visit& visit) {
  if (dtype == DType::float32)
    visit(Items<DType::float32>{});
  else if (dtype == DType::bfloat16)
    visit(Items<DType::bfloat16>{});
  else
    visit(Items<DType::float16>{});
}

inline void store_items(char* p, DType dtype, int64_t i, Isa::Float a) {
  if (dtype == DType::float32)
    Isa::store(reinterpret_cast<float*>(p) + i, a);
  else
    store_half(reinterpret_cast<uint16_t*>(p) + i, dtype, a);
}

inline void store_items_part(char* p, DType dtype, int64_t i, Isa::Float a, int64_t count) {
  if (dtype == DType::float32) {
    store_part(reinterpret_cast<float*>(p) + i, a, count);
    return;
  }
  uint16_t buffer[W];
  store_half(buffer, dtype, a);
  std::memcpy(p + i * item_size(dtype), buffer, size_t(count) * sizeof(uint16_t));
}

// Finds codes by bisection of the bounds, and packs or looks them up. One bit is a comparison and a
// mask.
template <int Bits> struct Rounding {
  Isa::Table<Bits> bounds;
  explicit Rounding(const float* p) : bounds(p) {}

  Isa::Int operator()(Isa::Float w) const {
    Isa::Int code = Isa::codes(0);
    for (int step = 1 << (Bits - 1); step > 0; step /= 2) {
      const Isa::Int higher = Isa::codes(step);
      code = Isa::or_where(Isa::greater(w, bounds[Isa::or_codes(code, higher)]), code, higher);
    }
    return code;
  }
  void pack(Isa::Float w, uint8_t* p) const { Isa::pack<Bits>((*this)(w), p); }
};

template <> struct Rounding<1> {
  Isa::Float bound;
  explicit Rounding(const float* p) : bound(Isa::set(p[1])) {}

  Isa::Mask operator()(Isa::Float w) const { return Isa::greater(w, bound); }
  void pack(Isa::Float w, uint8_t* p) const { Isa::store_mask(p, (*this)(w)); }
};

// The floats that codes stand for; codes come from Rounding or from packed bytes.
template <int Bits> struct Levels {
  Isa::Table<Bits> table;
  explicit Levels(const float* p) : table(p) {}

  Isa::Float operator()(Isa::Int codes) const { return table[codes]; }
  Isa::Float unpack(const uint8_t* p) const { return table[Isa::unpack<Bits>(p)]; }
};

template <> struct Levels<1> {
  Isa::Float low, high;
  explicit Levels(const float* p) : low(Isa::set(p[0])), high(Isa::set(p[1])) {}

  Isa::Float operator()(Isa::Mask mask) const { return Isa::select(mask, high, low); }
  Isa::Float unpack(const uint8_t* p) const { return (*this)(Isa::load_mask(p)); }
};

} // namespace
} // namespace petkit
