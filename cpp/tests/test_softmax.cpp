// Softmax sums, gradients and positions of every set of kernels against plain loops in double.
#include "check.h"
#include "petkit/half.h"

using namespace petkit;

namespace {

constexpr int sizes[] = {1, 7, 8, 15, 16, 17, 31, 33, 64, 65, 129, 4096};
constexpr float factor = 1.44269504f;

void sums_add_up(const Kernels& k, float scale, float offset) {
  for (int size : sizes) {
    Random random(size);
    std::vector<float> x = random.floats(size);
    for (float& value : x)
      value = value * scale + offset;
    const SoftmaxSums got =
        k.softmax_sums(x.data(), DType::float32, size, factor, -INFINITY, 1000.0f);
    float highest = -INFINITY;
    for (float value : x)
      highest = std::max(highest, value);
    double weight = 0, first = 0, second = 0;
    for (float value : x) {
      const double d = (double(value) - highest) * factor, power = std::exp2(d);
      weight += power, first += d * power, second += d * d * power;
    }
    CHECK(got.maximum == highest && got.highest == highest, "%s, %d values", k.name, size);
    CHECK(std::fabs(got.weight - weight) <= 1e-6 * weight, "%s, %d: %g", k.name, size, got.weight);
    CHECK(std::fabs(got.first - first) <= 2e-6 * (weight - first), "%s, %d", k.name, size);
    CHECK(std::fabs(got.second - second) <= 3e-6 * (weight + second), "%s, %d", k.name, size);
  }
}

void earlier_maximum_holds(const Kernels& k) {
  const float x[] = {1.0f, 2.0f, 0.5f};
  const SoftmaxSums near = k.softmax_sums(x, DType::float32, 3, 1.0f, 3.0f, 10.0f);
  CHECK(near.maximum == 3.0f && near.highest == 2.0f, "%s", k.name);
  CHECK(std::fabs(near.weight - (0.25 + 0.5 + std::exp2(-2.5))) < 1e-6, "%s", k.name);
  const SoftmaxSums far = k.softmax_sums(x, DType::float32, 3, 1.0f, 30.0f, 10.0f);
  CHECK(far.maximum == 30.0f && far.highest == 2.0f && far.weight == 0 && far.first == 0, "%s",
        k.name);
}

void what_is_not_finite_shows(const Kernels& k) {
  for (int size : sizes) {
    std::vector<float> x(size, 1.0f);
    x[size_t(size) / 2] = NAN;
    CHECK(std::isnan(k.softmax_sums(x.data(), DType::float32, size, 1, -INFINITY, 9).weight),
          "%s, nan among %d", k.name, size);
    CHECK(std::isnan(k.softmax_sums(x.data(), DType::float32, size, 1, 1000, 9).weight),
          "%s, nan among %d that are passed over", k.name, size);
    x[size_t(size) / 2] = INFINITY;
    CHECK(std::isnan(k.softmax_sums(x.data(), DType::float32, size, 1, -INFINITY, 9).weight),
          "%s, infinity among %d", k.name, size);
    x.assign(size, -INFINITY);
    const SoftmaxSums none = k.softmax_sums(x.data(), DType::float32, size, 1, -INFINITY, 9);
    CHECK(none.weight == 0 && none.maximum == -INFINITY, "%s, nothing in %d", k.name, size);
  }
}

void halves_are_their_values(const Kernels& k) {
  for (int size : sizes) {
    Random random(size);
    std::vector<float> x = random.floats(size);
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      std::vector<uint16_t> half(size);
      k.from_float(x.data(), dtype, half.data(), size);
      std::vector<float> wide(size);
      k.to_float(half.data(), dtype, wide.data(), size);
      const auto of_half = k.softmax_sums(half.data(), dtype, size, factor, -1, 100);
      const auto of_wide = k.softmax_sums(wide.data(), DType::float32, size, factor, -1, 100);
      CHECK(of_half.weight == of_wide.weight && of_half.second == of_wide.second, "%s, %d", k.name,
            size);
    }
  }
}

void gradients_follow_the_formula(const Kernels& k) {
  const SoftmaxSlope slope{2.0f, 0.7f, 0.3f, -0.2f};
  for (int size : sizes) {
    Random random(size);
    const std::vector<float> x = random.floats(size);
    std::vector<float> got(size, NAN);
    k.softmax_gradient(x.data(), DType::float32, size, slope, got.data());
    for (int i = 0; i < size; ++i) {
      const double d = (double(x[i]) - 2.0) * double(0.7f);
      const double expected = std::exp2(d) * (double(0.3f) + double(-0.2f) * d);
      CHECK(std::fabs(got[i] - expected) <= 1e-6, "%s, %d of %d: %g", k.name, i, size, got[i]);
    }
  }
}

void positions_rise(const Kernels& k) {
  for (int size : sizes) {
    Random random(size);
    std::vector<float> x = random.floats(size);
    x[0] = NAN;
    std::vector<int32_t> got(size_t(size) + 1, -1), expected;
    // A nan is no candidate, but whoever asks has to hear of it.
    for (int i = 0; i < size; ++i)
      if (x[i] > 0.25f || std::isnan(x[i]))
        expected.push_back(i);
    const int64_t found = k.positions_above(x.data(), size, 0.25f, got.data());
    CHECK(found == int64_t(expected.size()), "%s, %d", k.name, size);
    for (size_t i = 0; i < expected.size(); ++i)
      CHECK(got[i] == expected[i], "%s, %d", k.name, size);
  }
}

} // namespace

int main() {
  with_each_kernels([](const Kernels& k) {
    sums_add_up(k, 1.0f, 0.0f);
    sums_add_up(k, 30.0f, 0.0f);
    sums_add_up(k, 3.0f, 1e4f);
    earlier_maximum_holds(k);
    what_is_not_finite_shows(k);
    halves_are_their_values(k);
    gradients_follow_the_formula(k);
    positions_rise(k);
  });
  return finish("softmax");
}
