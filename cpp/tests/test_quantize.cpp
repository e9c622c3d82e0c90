// Moments, codes, values and the gradient's sums of every set of kernels against plain loops in
// double.
#include "check.h"
#include "petkit/packed.h"
#include "petkit/quantizer.h"

using namespace petkit;

namespace {

constexpr int sizes[] = {1, 7, 8, 15, 16, 17, 63, 64, 100, 4096};

struct Codebook {
  std::vector<float> levels, bounds, values;
  Codebook(int bits, float shift, float scale) {
    const int count = petkit::levels(bits);
    for (int i = 0; i < count; ++i)
      levels.push_back(float(i - count / 2) + 0.5f);
    bounds.push_back(-INFINITY);
    for (int i = 1; i < count; ++i)
      bounds.push_back(cut(shift, scale, levels[i - 1], levels[i]));
    for (const float level : levels)
      values.push_back(value(shift, scale, level));
  }
  // How many boundaries a weight exceeds, in double.
  unsigned code_of(float weight, float shift, float scale) const {
    unsigned code = 0;
    for (size_t i = 1; i < levels.size(); ++i) {
      const double threshold = (double(levels[i - 1]) + double(levels[i])) / 2;
      code += double(weight) > double(shift) + (double(scale) + epsilon) * threshold;
    }
    return code;
  }
};

void a_cut_separates_like_the_boundary() {
  Random random(1);
  for (int i = 0; i < 10000; ++i) {
    const float shift = random.uniform() * 100, scale = std::fabs(random.uniform());
    const float low = random.uniform(), high = low + std::fabs(random.uniform());
    const double boundary =
        double(shift) + (double(scale) + epsilon) * ((double(low) + double(high)) / 2);
    const float bound = cut(shift, scale, low, high);
    CHECK(double(bound) <= boundary, "cut %d", i);
    CHECK(double(std::nextafterf(bound, INFINITY)) > boundary, "the float above cut %d", i);
  }
}

void moments_add_up(const Kernels& k) {
  for (int size : sizes) {
    const std::vector<float> w = Random(unsigned(size)).floats(size_t(size));
    const float pivot = w[0];
    double total = 0, squares = 0;
    for (const float weight : w) {
      total += double(weight) - double(pivot);
      squares += (double(weight) - double(pivot)) * (double(weight) - double(pivot));
    }
    const Sums sums = k.moments(w.data(), size, pivot);
    CHECK(std::fabs(sums.first - total) <= 1e-12 * size, "%s %d", k.name, size);
    CHECK(std::fabs(sums.second - squares) <= 1e-12 * size, "%s %d", k.name, size);
    const Sums first = available_kernels()[0]->moments(w.data(), size, pivot);
    CHECK(sums.first == first.first && sums.second == first.second, "%s differs from %s", k.name,
          available_kernels()[0]->name);
  }
}

void codes_and_values(const Kernels& k, int bits) {
  const float shift = 0.03f, scale = 2.0f / float(levels(bits));
  const Codebook book(bits, shift, scale);
  for (int size : sizes) {
    std::vector<float> w = Random(unsigned(size)).floats(size_t(size));
    w[0] = book.bounds[size_t(levels(bits) / 2)]; // a tie: the lower level
    std::vector<uint8_t> packed(size_t(row_bytes(size, bits)), 0xff);
    std::vector<float> decoded(w.size(), NAN), rounded(w.size(), NAN);
    k.encode[variant(bits)](w.data(), size, book.bounds.data(), packed.data());
    k.decode[variant(bits)](packed.data(), size, book.values.data(), decoded.data());
    k.round[variant(bits)](w.data(), size, book.bounds.data(), book.values.data(), rounded.data());
    for (int i = 0; i < size; ++i) {
      const unsigned code = book.code_of(w[size_t(i)], shift, scale);
      CHECK(read_code(packed.data(), i, bits) == code, "%s %d bits, %d of %d", k.name, bits, i,
            size);
      CHECK(decoded[size_t(i)] == book.values[code], "%s %d bits, %d of %d", k.name, bits, i, size);
      CHECK(rounded[size_t(i)] == book.values[code], "%s %d bits, %d of %d", k.name, bits, i, size);
    }
    const int used = size * bits % 8;
    CHECK(used == 0 || packed.back() >> used == 0, "%s %d bits: padding of %d", k.name, bits, size);
  }
}

void gradient(const Kernels& k, int bits) {
  const float shift = 0.03f, scale = 2.0f / float(levels(bits));
  const Codebook book(bits, shift, scale);
  const double spread = double(scale) + epsilon, ratio = double(scale) / spread;
  const Straight straight{book.bounds.data(), book.levels.data(), shift, float(ratio / spread)};
  for (int size : sizes) {
    const std::vector<float> w = Random(unsigned(size)).floats(size_t(size));
    const std::vector<float> g = Random(unsigned(size) + 1).floats(size_t(size));
    double total = 0, inner = 0, magnitude = 0;
    for (int i = 0; i < size; ++i) {
      const double normalised = (double(w[size_t(i)]) - double(shift)) / spread;
      const double level = book.levels[book.code_of(w[size_t(i)], shift, scale)];
      total += g[size_t(i)];
      inner += g[size_t(i)] * (level - ratio * normalised);
      magnitude += std::fabs(g[size_t(i)]) * (std::fabs(level) + std::fabs(normalised));
    }
    const Sums sums = k.straight_sums[variant(bits)](straight, w.data(), g.data(), size);
    CHECK(std::fabs(sums.first - total) <= 1e-6 * size, "%s %d bits, %d", k.name, bits, size);
    CHECK(std::fabs(sums.second - inner) <= 2e-6 * magnitude, "%s %d bits, %d", k.name, bits, size);
    const float terms[3] = {0.5f, 0.25f, -2.0f};
    std::vector<float> out(w.size(), NAN);
    k.affine(w.data(), g.data(), size, shift, terms, out.data());
    for (int i = 0; i < size; ++i) {
      const double expected =
          0.5 * g[size_t(i)] + 0.25 - 2.0 * (double(w[size_t(i)]) - double(shift));
      CHECK(std::fabs(out[size_t(i)] - expected) <= 1e-6, "%s affine %d", k.name, i);
    }
  }
}

} // namespace

int main() {
  a_cut_separates_like_the_boundary();
  with_each_kernels([](const Kernels& k) {
    moments_add_up(k);
    for (int bits : {1, 2, 4, 8}) {
      codes_and_values(k, bits);
      gradient(k, bits);
    }
  });
  return finish("quantize");
}
