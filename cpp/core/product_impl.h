// Products with packed matrices for one instruction set `Isa`: dot products of rows, and sums of
// rows.
#pragma once

#include "vector_impl.h"

namespace petkit {
namespace {

// How a vector of codes takes part in a product. In general the codes become weights and each
// product is a fused multiply-add. Of one bit the weight is low + bit * step, so inputs are added
// where the bit is set and the sum of all inputs comes in at the end: sum(w x) = step * sum(x where
// bit) + low * sum(x).
template <int Bits> struct Weights {
  using Vector = Isa::Float;
  static constexpr bool needs_total = false;
  Levels<Bits> levels;
  explicit Weights(const float* values) : levels(values) {}

  Vector load(const uint8_t* p) const { return levels.unpack(p); }
  static Isa::Float add(Isa::Float sum, Vector w, Isa::Float x) { return Isa::fma(w, x, sum); }
  float finish(float sum, float) const { return sum; }
  Isa::Float finish(Isa::Float sum, float) const { return sum; }
};

template <> struct Weights<1> {
  using Vector = Isa::Mask;
  static constexpr bool needs_total = true;
  float low, step;
  explicit Weights(const float* values) : low(values[0]), step(values[1] - values[0]) {}

  Vector load(const uint8_t* p) const { return Isa::load_mask(p); }
  static Isa::Float add(Isa::Float sum, Vector w, Isa::Float x) {
    return Isa::add_where(w, sum, x);
  }
  float finish(float sum, float total) const { return step * sum + low * total; }
  Isa::Float finish(Isa::Float sum, float total) const {
    return Isa::fma(Isa::set(step), sum, Isa::set(low * total));
  }
};

// T rows of x, with zeros behind the last whole vector of columns, and their totals where needed.
template <int T> struct Inputs {
  const float* row[T];
  float tail[T][W];
  float total[T];
  int64_t whole; // columns in whole vectors

  Inputs(const float* const* rows, int64_t columns, bool with_total) : whole(columns / W * W) {
    for (int t = 0; t < T; ++t) {
      row[t] = rows[t];
      for (int i = 0; i < W; ++i)
        tail[t][i] = whole + i < columns ? rows[t][whole + i] : 0.0f;
      total[t] = with_total ? sum_of(row[t], tail[t]) : 0.0f;
    }
  }

  // Four sums side by side, because an addition takes that many cycles.
  float sum_of(const float* x, const float* rest) const {
    Isa::Float sum[4] = {Isa::load(rest), Isa::set(0), Isa::set(0), Isa::set(0)};
    int64_t c = 0;
    for (; c + 4 * W <= whole; c += 4 * W)
      for (int i = 0; i < 4; ++i)
        sum[i] = Isa::add(sum[i], Isa::load(x + c + i * W));
    for (; c < whole; c += W)
      sum[0] = Isa::add(sum[0], Isa::load(x + c));
    return Isa::sum(Isa::add(Isa::add(sum[0], sum[1]), Isa::add(sum[2], sum[3])));
  }
};

// out[t * stride + r] for R rows of the matrix and T rows of x, `packed` at the first of the R
// rows.
template <int Bits, int R, int T>
void dot_tile(const Weights<Bits>& weights, const uint8_t* packed, int64_t row_stride,
              const Inputs<T>& x, int64_t columns, float* out, int64_t stride) {
  Isa::Float sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      sum[r][t] = Isa::set(0);
  for (int64_t c = 0; c < x.whole; c += W) {
    Isa::Float input[T];
    for (int t = 0; t < T; ++t)
      input[t] = Isa::load(x.row[t] + c);
    for (int r = 0; r < R; ++r) {
      const auto w = weights.load(packed + r * row_stride + c * Bits / 8);
      for (int t = 0; t < T; ++t)
        sum[r][t] = Weights<Bits>::add(sum[r][t], w, input[t]);
    }
  }
  for (int r = 0; r < R; ++r) {
    if (x.whole < columns) {
      uint8_t buffer[W] = {};
      const uint8_t* rest = packed + r * row_stride + x.whole * Bits / 8;
      std::memcpy(buffer, rest, size_t(row_bytes(columns - x.whole, Bits)));
      const auto w = weights.load(buffer);
      for (int t = 0; t < T; ++t)
        sum[r][t] = Weights<Bits>::add(sum[r][t], w, Isa::load(x.tail[t]));
    }
    for (int t = 0; t < T; ++t)
      out[t * stride + r] = weights.finish(Isa::sum(sum[r][t]), x.total[t]);
  }
}

// out[t * stride + r] for all rows of a matrix; R rows at a time keep enough sums in flight.
template <int Bits, int T>
void dot_rows(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows, int64_t columns,
              const float* const* x, float* out, int64_t stride) {
  constexpr int R = T == 1 ? 8 : 4;
  const Inputs<T> inputs(x, columns, Weights<Bits>::needs_total);
  const int64_t bytes = row_bytes(columns, Bits);
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    dot_tile<Bits, R, T>(weights, packed + r * bytes, bytes, inputs, columns, out + r, stride);
  for (; r < rows; ++r)
    dot_tile<Bits, 1, T>(weights, packed + r * bytes, bytes, inputs, columns, out + r, stride);
}

// Splits tokens into fours and ones.
template <int Bits>
void dot_tokens(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows, int64_t columns,
                const float* const* x, int64_t tokens, float* out, int64_t stride) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    dot_rows<Bits, 4>(weights, packed, rows, columns, x + t, out + t * stride, stride);
  for (; t < tokens; ++t)
    dot_rows<Bits, 1>(weights, packed, rows, columns, x + t, out + t * stride, stride);
}

// y[t][column ...] of C vectors: the sum over rows r of a[t * stride + r] times row r of the
// matrix, added to what y holds when `more` is set. `packed` is at the first row and the tile's
// first column.
template <int Bits, int T, int C>
void sum_tile(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows, int64_t row_stride,
              const float* a, int64_t stride, const float* totals, float* const* y, bool more) {
  Isa::Float sum[T][C];
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c)
      sum[t][c] = Isa::set(0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < C; ++c) {
      const auto w = weights.load(packed + r * row_stride + c * (W * Bits / 8));
      for (int t = 0; t < T; ++t)
        sum[t][c] = Weights<Bits>::add(sum[t][c], w, Isa::set(a[t * stride + r]));
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) {
      Isa::Float result = weights.finish(sum[t][c], totals[t]);
      if (more)
        result = Isa::add(result, Isa::load(y[t] + c * W));
      Isa::store(y[t] + c * W, result);
    }
  }
}

// The last columns, fewer than a vector. Each row's bytes are copied out, so that nothing behind
// the row's end is read.
template <int Bits, int T>
void sum_rest(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows, int64_t row_stride,
              const float* a, int64_t stride, const float* totals, int64_t rest, float* const* y,
              bool more) {
  Isa::Float sum[T];
  for (int t = 0; t < T; ++t)
    sum[t] = Isa::set(0);
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t buffer[W] = {};
    std::memcpy(buffer, packed + r * row_stride, size_t(row_bytes(rest, Bits)));
    const auto w = weights.load(buffer);
    for (int t = 0; t < T; ++t)
      sum[t] = Weights<Bits>::add(sum[t], w, Isa::set(a[t * stride + r]));
  }
  for (int t = 0; t < T; ++t) {
    float result[W];
    Isa::store(result, weights.finish(sum[t], totals[t]));
    for (int64_t i = 0; i < rest; ++i)
      y[t][i] = more ? y[t][i] + result[i] : result[i];
  }
}

// y[t][0 .. columns) for T tokens; `packed` is at the first row and column.
template <int Bits, int T>
void sum_rows(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows, int64_t row_stride,
              int64_t columns, const float* a, int64_t stride, float* const* y, bool more) {
  constexpr int C = T == 1 ? 8 : 4;
  float totals[T] = {};
  for (int t = 0; Weights<Bits>::needs_total && t < T; ++t)
    for (int64_t r = 0; r < rows; ++r)
      totals[t] += a[t * stride + r];
  float* place[T];
  int64_t c = 0;
  const auto move = [&] {
    for (int t = 0; t < T; ++t)
      place[t] = y[t] + c;
  };
  for (; c + C * W <= columns; c += C * W) {
    move();
    sum_tile<Bits, T, C>(weights, packed + c * Bits / 8, rows, row_stride, a, stride, totals, place,
                         more);
  }
  for (; c + W <= columns; c += W) {
    move();
    sum_tile<Bits, T, 1>(weights, packed + c * Bits / 8, rows, row_stride, a, stride, totals, place,
                         more);
  }
  if (c < columns) {
    move();
    sum_rest<Bits, T>(weights, packed + c * Bits / 8, rows, row_stride, a, stride, totals,
                      columns - c, place, more);
  }
}

template <int Bits>
void sum_tokens(const Weights<Bits>& weights, const uint8_t* packed, int64_t rows,
                int64_t row_stride, int64_t columns, const float* a, int64_t stride, int64_t tokens,
                float* const* y, bool more) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    sum_rows<Bits, 4>(weights, packed, rows, row_stride, columns, a + t * stride, stride, y + t,
                      more);
  for (; t < tokens; ++t)
    sum_rows<Bits, 1>(weights, packed, rows, row_stride, columns, a + t * stride, stride, y + t,
                      more);
}

} // namespace
} // namespace petkit
