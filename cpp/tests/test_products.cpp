// Products with packed matrices of every set of kernels against plain loops in double. Buffers have
// exactly the size that the kernels may touch, so that the sanitizers see a read or write beyond
// them.
#include <algorithm>

#include "check.h"
#include "petkit/packed.h"
#include "petkit/quantizer.h"

using namespace petkit;

namespace {

struct Shape {
  int64_t tokens, rows, columns;
};

// Around the widths of vectors, panels, groups and chunks.
constexpr Shape shapes[] = {{1, 1, 1},    {1, 33, 7},   {3, 16, 8},    {5, 40, 63},
                            {4, 64, 64},  {9, 8, 100},  {70, 37, 5},   {2, 100, 300},
                            {1, 70, 530}, {130, 48, 9}, {17, 129, 33}, {6, 260, 65}};

struct Matrix {
  std::vector<uint8_t> packed;
  std::vector<float> values;
  PackedMatrix matrix;

  Matrix(int64_t rows, int64_t columns, int bits, unsigned seed)
      : packed(Random(seed).bytes(size_t(rows * row_bytes(columns, bits)))),
        values(Random(seed + 1).floats(size_t(levels(bits)))),
        matrix{packed.data(), rows, columns, bits, values.data()} {}

  double weight(int64_t r, int64_t c) const {
    const uint8_t* row = packed.data() + r * row_bytes(matrix.columns, matrix.bits);
    return values[read_code(row, c, matrix.bits)];
  }
};

// A float32 sum may be off by a few units in the last place of the sum of absolute terms.
bool close(float result, double exact, double magnitude) {
  return std::fabs(double(result) - exact) <= 2e-6 * magnitude + 1e-30;
}

void forward(const Kernels& k, int bits, const Shape& s) {
  const Matrix m(s.rows, s.columns, bits, 5);
  const std::vector<float> x = Random(7).floats(size_t(s.tokens * s.columns));
  std::vector<float> y(size_t(s.tokens * s.rows), NAN);
  for (int64_t begin = 0; begin < s.rows; begin += 2 * row_group)
    k.linear[variant(bits)](m.matrix, x.data(), s.tokens, y.data(), begin,
                            std::min(begin + 2 * row_group, s.rows));
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t r = 0; r < s.rows; ++r) {
      double sum = 0, magnitude = 0;
      for (int64_t c = 0; c < s.columns; ++c) {
        const double term = m.weight(r, c) * x[size_t(t * s.columns + c)];
        sum += term, magnitude += std::fabs(term);
      }
      // The 1-bit identity also adds the sum of all inputs.
      magnitude += double(s.columns);
      CHECK(close(y[size_t(t * s.rows + r)], sum, magnitude),
            "%s %d bits, token %d, row %d of %d x %d", k.name, bits, int(t), int(r), int(s.rows),
            int(s.columns));
    }
  }
}

void backward(const Kernels& k, int bits, const Shape& s) {
  const Matrix m(s.rows, s.columns, bits, 5);
  const std::vector<float> g = Random(7).floats(size_t(s.tokens * s.rows));
  std::vector<float> gx(size_t(s.tokens * s.columns), NAN);
  for (int64_t begin = 0; begin < s.columns; begin += column_group)
    k.linear_backward[variant(bits)](m.matrix, g.data(), s.tokens, gx.data(), begin,
                                     std::min(begin + column_group, s.columns));
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t c = 0; c < s.columns; ++c) {
      double sum = 0;
      for (int64_t r = 0; r < s.rows; ++r)
        sum += m.weight(r, c) * g[size_t(t * s.rows + r)];
      CHECK(close(gx[size_t(t * s.columns + c)], sum, double(s.rows)),
            "%s %d bits, token %d, column %d of %d x %d", k.name, bits, int(t), int(c), int(s.rows),
            int(s.columns));
    }
  }
}

// Token t of `count` tokens goes through adapter 1 of 2, rows in reverse order.
void bank(const Kernels& k, int bits, int64_t count, int64_t hidden, int64_t in, int64_t out) {
  const std::vector<uint8_t> down = Random(1).bytes(size_t(2 * hidden * row_bytes(in, bits)));
  const std::vector<uint8_t> up = Random(2).bytes(size_t(2 * hidden * row_bytes(out, bits)));
  const std::vector<float> codebook = Random(3).floats(size_t(levels(bits)));
  const std::vector<float> constants{0, 0, 0, 0, 0, 0.1f, 0.5f, -0.2f, 0.7f, 1.5f};
  const Bank b{down.data(), up.data(), constants.data(), codebook.data(), hidden, in, out,
               bits,        true};
  const std::vector<float> x = Random(4).floats(size_t(count * in));
  std::vector<float> y(size_t(count * out), NAN), scratch(size_t(bank_scratch(b)), NAN);
  std::vector<int64_t> tokens;
  for (int64_t t = count - 1; t >= 0; --t)
    tokens.push_back(t);
  k.bank[variant(bits)](b, x.data(), DType::float32, {1, tokens.data(), count}, y.data(), false,
                        scratch.data());
  const auto weight = [&](const std::vector<uint8_t>& packed, int64_t width, int64_t h, int64_t c,
                          int at) {
    const unsigned code = read_code(packed.data() + (hidden + h) * row_bytes(width, bits), c, bits);
    return double(value(constants[size_t(5 + at)], constants[size_t(6 + at)], codebook[code]));
  };
  for (int64_t t = 0; t < count; ++t) {
    std::vector<double> middle;
    for (int64_t h = 0; h < hidden; ++h) {
      double sum = 0;
      for (int64_t c = 0; c < in; ++c)
        sum += weight(down, in, h, c, 0) * x[size_t(t * in + c)];
      middle.push_back(std::max(sum, 0.0));
    }
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (int64_t h = 0; h < hidden; ++h)
        sum += weight(up, out, h, o, 2) * middle[size_t(h)];
      CHECK(close(y[size_t(t * out + o)], 1.5 * sum, 2.0 * double(hidden * in)),
            "%s bank, %d bits, %d tokens, hidden %d, token %d, output %d", k.name, bits, int(count),
            int(hidden), int(t), int(o));
    }
  }
}

} // namespace

int main() {
  with_each_kernels([](const Kernels& k) {
    for (int bits : {1, 2, 4, 8}) {
      for (const Shape& shape : shapes) {
        forward(k, bits, shape);
        backward(k, bits, shape);
      }
      bank(k, bits, 1, 1, 1, 1);
      bank(k, bits, 16, 8, 70, 50);
      bank(k, bits, 5, 33, 64, 300);
      bank(k, bits, 3, 3, 9, 17);
    }
  });
  return finish("products");
}
