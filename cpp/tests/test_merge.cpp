// Sums of models, differences to a base, histograms, ranges and finiteness of every set of kernels
// against plain loops.
#include <cstring>

#include "check.h"
#include "petkit/half.h"
#include "petkit/splitmix.h"

using namespace petkit;

namespace {

constexpr int64_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 255, 257, 1000};
constexpr DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16};
constexpr const char* dtype_names[] = {"float32", "bfloat16", "float16"};

// Numbers of a dtype in memory, and what they are as float.
struct Row {
  std::vector<float> values;
  std::vector<char> stored;

  Row(std::vector<float> numbers, DType dtype)
      : values(std::move(numbers)), stored(values.size() * size_t(item_size(dtype)) + 1) {
    for (size_t i = 0; i < values.size(); ++i)
      put(dtype, i);
  }

private:
  void put(DType dtype, size_t i) {
    char* place = stored.data() + i * size_t(item_size(dtype));
    if (dtype == DType::float32) {
      std::memcpy(place, &values[i], sizeof(float));
      return;
    }
    const bool brain = dtype == DType::bfloat16;
    const uint16_t half = brain ? to_bfloat16(values[i]) : to_float16(values[i]);
    values[i] = brain ? from_bfloat16(half) : from_float16(half);
    std::memcpy(place, &half, sizeof half);
  }
};

bool same(float a, float b) { return bits_of(a) == bits_of(b) || (a != a && b != b); }

void check_stored(const Kernels& k, const Row& got, const std::vector<float>& expected, DType dtype,
                  const char* what) {
  const Row wanted(expected, dtype);
  const int64_t count = int64_t(expected.size());
  // One more, since kernels are never given a null pointer.
  std::vector<float> wide(size_t(count) + 1);
  k.to_float(got.stored.data(), dtype, wide.data(), count);
  for (size_t i = 0; i < expected.size(); ++i)
    CHECK(same(wide[i], wanted.values[i]), "%s %s in %s: %zu of %zu is %g, not %g", k.name, what,
          dtype_names[int(dtype)], i, expected.size(), double(wide[i]), double(wanted.values[i]));
}

std::vector<Row> rows_of(int64_t models, int64_t count, DType dtype) {
  std::vector<Row> rows;
  for (int64_t m = 0; m < models; ++m) {
    std::vector<float> values = Random(unsigned(m * 1000 + count)).floats(size_t(count));
    if (count > 20) {
      values[3] = -0.0f;
      values[5 + size_t(m)] = m % 2 == 0 ? NAN : INFINITY;
      values[18] = 0.25f;
    }
    rows.emplace_back(values, dtype);
  }
  return rows;
}

void random_bits_are_those_of_the_paper() {
  // The published first numbers of the seed 0.
  CHECK(splitmix(splitmix_step) == 0xe220a8397b1dcdaf, "first");
  CHECK(splitmix(2 * splitmix_step) == 0x6e789e6aa1b965f4, "second");
  CHECK(splitmix(3 * splitmix_step) == 0x06c45d188009454f, "third");
}

void linear(const Kernels& k, DType dtype, int64_t count, int64_t models) {
  const std::vector<Row> rows = rows_of(models, count, dtype);
  const std::vector<float> weights = Random(7).floats(size_t(models));
  std::vector<const char*> places;
  std::vector<float> expected(size_t(count), 0);
  for (size_t m = 0; m < rows.size(); ++m) {
    places.push_back(rows[m].stored.data());
    for (size_t i = 0; i < expected.size(); ++i) {
      const float product = rows[m].values[i] * weights[m];
      expected[i] = m == 0 ? product : expected[i] + product;
    }
  }
  const LinearMerge merge{places.data(), weights.data(), models, dtype};
  for (DType result : dtypes) {
    Row out(std::vector<float>(size_t(count), 7), result);
    // In two parts, as blocks of a slice come.
    const int64_t half = count / 2;
    k.merge.linear(merge, 0, half, out.stored.data(), result);
    k.merge.linear(merge, half, count - half, out.stored.data(), result);
    check_stored(k, out, expected, result, "linear");
  }
}

struct Definition {
  std::vector<DeltaTerm> terms;
  Consensus consensus;
  bool normalize;
  float factor;

  float delta(size_t m, size_t place, float model, float base) const {
    const DeltaTerm& term = terms[m];
    float delta = model - base;
    const bool missing = delta != delta;
    bool out = std::fabs(delta) < term.low || std::fabs(delta) > term.high;
    if (term.share < 1u << 24) {
      const uint64_t bits = splitmix(term.state + place * splitmix_step);
      out |= float(bits >> 40) * 0x1p-24f >= term.keep;
      delta /= term.keep;
    }
    return (out && !missing ? 0.0f : delta) * term.weight;
  }

  float merged(const std::vector<Row>& rows, const Row& base, size_t place) const {
    std::vector<float> deltas;
    float votes = 0, total = 0, divisor = 0;
    for (size_t m = 0; m < rows.size(); ++m) {
      deltas.push_back(delta(m, place, rows[m].values[place], base.values[place]));
      if (consensus == Consensus::count)
        votes += float((deltas[m] > 0) - (deltas[m] < 0));
      else
        votes += deltas[m];
    }
    const float sign = votes >= 0 ? 1.0f : -1.0f;
    for (size_t m = 0; m < rows.size(); ++m) {
      const bool agrees = consensus == Consensus::none || !(deltas[m] * sign <= 0);
      total += agrees ? deltas[m] : 0;
      divisor += agrees ? terms[m].weight : 0;
    }
    if (normalize)
      total /= std::fabs(divisor) < 1e-8f ? 1 : divisor;
    return base.values[place] + factor * total;
  }
};

void deltas(const Kernels& k, DType dtype, int64_t count, int64_t models, Consensus consensus,
            bool normalize) {
  std::vector<Row> rows = rows_of(models + 1, count, dtype);
  const Row base = rows.back();
  rows.pop_back();
  Definition definition{{}, consensus, normalize, 0.7f};
  float divisor = 0;
  for (size_t m = 0; m < rows.size(); ++m) {
    const float shares[] = {1, 0.3f, 0, 0.999f};
    const float keep = shares[m % 4], weight = m == 2 ? -0.5f : 0.3f;
    const uint32_t share = uint32_t(std::ceil(keep * float(1 << 24)));
    definition.terms.push_back(
        {rows[m].stored.data(), weight, 0.1f, 1.5f, keep, share, 0x123456789abcdef * (m + 1)});
    divisor += weight;
  }
  const DeltaMerge merge{
      base.stored.data(), definition.terms.data(), models, dtype, consensus, normalize, divisor,
      definition.factor};
  std::vector<float> expected, scratch(size_t(merge_scratch(models)));
  for (size_t i = 0; i < size_t(count); ++i)
    expected.push_back(definition.merged(rows, base, i));
  for (DType result : dtypes) {
    Row out(std::vector<float>(size_t(count), 7), result);
    const int64_t half = count / 2;
    k.merge.deltas(merge, 0, half, out.stored.data(), result, scratch.data());
    k.merge.deltas(merge, half, count - half, out.stored.data(), result, scratch.data());
    check_stored(k, out, expected, result, "deltas");
  }
}

void magnitudes(const Kernels& k, DType dtype, int64_t count) {
  const std::vector<Row> rows = rows_of(2, count, dtype);
  const char *base = rows[0].stored.data(), *model = rows[1].stored.data();
  std::vector<int64_t> upper(upper_bins);
  std::vector<uint32_t> bits;
  for (size_t i = 0; i < size_t(count); ++i) {
    bits.push_back(bits_of(rows[1].values[i] - rows[0].values[i]) & 0x7fffffff);
    ++upper[bits[i] >> 16];
  }
  std::vector<uint32_t> bins(magnitude_bins);
  k.merge.upper_halves(base, model, dtype, count, bins.data());
  for (int64_t bin = 0; bin < upper_bins; ++bin) {
    int64_t found = 0;
    for (int64_t at = bin; at < magnitude_bins; at += upper_bins)
      found += bins[size_t(at)];
    CHECK(found == upper[size_t(bin)], "%s upper half %d: %d", k.name, int(bin), int(found));
  }
  for (const uint32_t wanted : {count > 0 ? bits[size_t(count) / 2] >> 16 : 0, 0u, 0x7fc0u}) {
    std::vector<int64_t> lower(lower_bins);
    for (const uint32_t one : bits)
      lower[one & 0xffff] += one >> 16 == wanted;
    bins.assign(magnitude_bins, 0);
    k.merge.lower_halves(base, model, dtype, count, wanted, bins.data());
    for (int64_t bin = 0; bin < lower_bins; ++bin)
      CHECK(bins[size_t(bin)] + bins[size_t(bin + lower_bins)] == lower[size_t(bin)],
            "%s lower half %d of %x", k.name, int(bin), wanted);
  }
}

void ranges(const Kernels& k, DType dtype, int64_t count) {
  const std::vector<Row> rows = rows_of(2, count, dtype);
  std::vector<float> sizes;
  for (size_t i = 0; i < size_t(count); ++i)
    sizes.push_back(std::fabs(rows[1].values[i] - rows[0].values[i]));
  const float some = count > 20 ? sizes[8] : 0.5f;
  const float ends[][2] = {{0, 0},           {0, some},        {some, some},
                           {some, 2 * some}, {some, INFINITY}, {INFINITY, INFINITY}};
  for (const auto& [low, high] : ends) {
    int64_t below = 0, at_low = 0, at_high = 0;
    std::vector<float> between, values(size_t{within_values}, -1);
    for (const float size : sizes) {
      below += size < low;
      at_low += size == low;
      at_high += size == high && high > low;
      if (size > low && size < high)
        between.push_back(size);
    }
    const Places got = k.merge.within(rows[0].stored.data(), rows[1].stored.data(), dtype, count,
                                      low, high, values.data());
    CHECK(got.below == below && got.at_low == at_low && got.at_high == at_high &&
              got.between == int64_t(between.size()),
          "%s of %d from %g to %g: %d %d %d %d", k.name, int(count), double(low), double(high),
          int(got.below), int(got.at_low), int(got.between), int(got.at_high));
    for (size_t i = 0; i < between.size(); ++i)
      CHECK(values[i] == between[i], "%s value %d of %d from %g to %g", k.name, int(i), int(count),
            double(low), double(high));
  }
}

void finiteness(const Kernels& k, DType dtype, int64_t count) {
  std::vector<float> values = Random(1).floats(size_t(count));
  if (count > 0)
    values[0] = dtype == DType::float16 ? 65504.0f : 3.3e38f;
  CHECK(k.merge.finite(Row(values, dtype).stored.data(), dtype, count), "%s", k.name);
  for (size_t i = 0; i < values.size(); i += 3)
    for (const float broken : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> changed = values;
      changed[i] = broken;
      CHECK(!k.merge.finite(Row(changed, dtype).stored.data(), dtype, count), "%s %g at %zu",
            k.name, double(broken), i);
    }
}

} // namespace

int main() {
  random_bits_are_those_of_the_paper();
  with_each_kernels([](const Kernels& k) {
    for (DType dtype : dtypes)
      for (int64_t count : sizes) {
        for (int64_t models : {1, 2, 3, 9})
          linear(k, dtype, count, models);
        for (Consensus consensus : {Consensus::none, Consensus::sum, Consensus::count})
          for (int64_t models : {1, 3, 9}) {
            deltas(k, dtype, count, models, consensus, false);
            deltas(k, dtype, count, models, consensus, true);
          }
        magnitudes(k, dtype, count);
        ranges(k, dtype, count);
        finiteness(k, dtype, count);
      }
  });
  return finish("merge");
}
