// Sums of models and of their differences to a base, for one instruction set `Isa`.
#pragma once

#include "vector_impl.h"

namespace petkit {
namespace {

// `Vectors` vectors of the weighted sum. Products and sums are rounded one by one, as torch's are.
template <int64_t Vectors, class Load>
inline void weighted_sum(const LinearMerge& merge, const Load& load, Isa::Float* sums) {
  const Isa::Float first = Isa::set(merge.weights[0]);
  for (int64_t u = 0; u < Vectors; ++u)
    sums[u] = Isa::mul(load(merge.rows[0], u), first);
  for (int64_t m = 1; m < merge.models; ++m) {
    const Isa::Float weight = Isa::set(merge.weights[m]);
    for (int64_t u = 0; u < Vectors; ++u)
      sums[u] = Isa::add(sums[u], Isa::mul(load(merge.rows[m], u), weight));
  }
}

template <class Source>
void linear_of(const LinearMerge& merge, int64_t first, int64_t count, char* out, DType result) {
  Isa::Float sums[unrolled];
  int64_t i = first;
  const int64_t end = first + count;
  for (; i + unrolled * W <= end; i += unrolled * W) {
    weighted_sum<unrolled>(
        merge, [&](const char* row, int64_t u) { return Source::load(row, i + u * W); }, sums);
    for (int64_t u = 0; u < unrolled; ++u)
      store_items(out, result, i + u * W, sums[u]);
  }
  for (; i < end; i += W) {
    const int64_t rest = end - i < W ? end - i : W;
    weighted_sum<1>(
        merge, [&](const char* row, int64_t) { return Source::load_part(row, i, rest, 0); }, sums);
    store_items_part(out, result, i, sums[0], rest);
  }
}

void merge_linear(const LinearMerge& merge, int64_t first, int64_t count, void* out, DType result) {
  visit_dtype(merge.dtype, [&](auto items) {
    linear_of<decltype(items)>(merge, first, count, static_cast<char*>(out), result);
  });
}

// The numbers of a term in registers.
struct Weigher {
  Isa::Float weight, low, high, keep;
  uint64_t state; // of the first lane
  uint32_t share;

  Weigher(const DeltaTerm& term, int64_t place)
      : weight(Isa::set(term.weight)), low(Isa::set(term.low)), high(Isa::set(term.high)),
        keep(Isa::set(term.keep)), state(term.state + uint64_t(place) * splitmix_step),
        share(term.share) {}

  // Where a difference is left out for its magnitude. A nan never is: no comparison with it is
  // true.
  Isa::Mask trimmed(Isa::Float size) const {
    return Isa::either(Isa::greater(low, size), Isa::greater(size, high));
  }
  // What a difference counts: weighted, 0 where it is left out.
  Isa::Float operator()(Isa::Float delta) const {
    return Isa::mul(weight, Isa::select(trimmed(Isa::abs(delta)), Isa::set(0), delta));
  }
  // Likewise, at random.
  Isa::Float thinned(Isa::Float delta) {
    const Isa::Float size = Isa::abs(delta), grown = Isa::div(delta, keep);
    const Isa::Mask out = Isa::either(trimmed(size), Isa::dropped(state, share));
    state += uint64_t(W) * splitmix_step;
    const Isa::Float kept = Isa::select(out, Isa::set(0), grown);
    // Chance drops no nan either.
    return Isa::mul(weight, Isa::select(Isa::unordered(size), grown, kept));
  }
};

inline Isa::Float normalized(Isa::Float total, Isa::Float divisor) {
  const Isa::Mask tiny = Isa::greater(Isa::set(1e-8f), Isa::abs(divisor));
  return Isa::div(total, Isa::select(tiny, Isa::set(1), divisor));
}

// Up to merge_tile places of a merge, step by step: the turns of each step's loop do not wait for
// each other. Lanes behind the end hold what comes of zeros.
template <Consensus C, class Source> class DeltaTile {
public:
  DeltaTile(const DeltaMerge& merge, int64_t first, int64_t count, float* scratch)
      : merge_(merge), first_(first), count_(count), base_(scratch), sums_(scratch + merge_tile),
        deltas_(scratch + 2 * merge_tile) {}

  void write(char* out, DType result) {
    start();
    for (int64_t m = 0; m < merge_.models; ++m)
      add_model(merge_.terms[m], deltas_ + m * merge_tile);
    const Isa::Float factor = Isa::set(merge_.factor);
    const auto merged = [&](int64_t i) {
      return Isa::add(Isa::load(base_ + i), Isa::mul(factor, total(i)));
    };
    sweep(
        count_, [&](int64_t i) { store_items(out, result, first_ + i, merged(i)); },
        [&](int64_t i, int64_t rest) {
          store_items_part(out, result, first_ + i, merged(i), rest);
        });
  }

private:
  void start() {
    const auto set = [&](int64_t i, Isa::Float base) {
      Isa::store(base_ + i, base);
      Isa::store(sums_ + i, Isa::set(0));
    };
    sweep(
        count_, [&](int64_t i) { set(i, Source::load(merge_.base, first_ + i)); },
        [&](int64_t i, int64_t rest) {
          set(i, Source::load_part(merge_.base, first_ + i, rest, 0));
        });
  }

  void add_model(const DeltaTerm& term, float* deltas) {
    Weigher weigher(term, first_);
    if (term.share < 1u << splitmix_bits)
      add_each(term.row, deltas, [&](Isa::Float delta) { return weigher.thinned(delta); });
    else
      add_each(term.row, deltas, [&](Isa::Float delta) { return weigher(delta); });
  }
  template <class Weigh> void add_each(const char* row, float* deltas, const Weigh& weigh) {
    float *base = base_, *sums = sums_;
    const auto add = [&](int64_t i, Isa::Float model) {
      const Isa::Float delta = weigh(Isa::sub(model, Isa::load(base + i)));
      if constexpr (C != Consensus::none)
        Isa::store(deltas + i, delta);
      Isa::store(sums + i, voted(Isa::load(sums + i), delta));
    };
    const int64_t first = first_;
    sweep(
        count_, [&](int64_t i) { add(i, Source::load(row, first + i)); },
        [&](int64_t i, int64_t rest) { add(i, Source::load_part(row, first + i, rest, 0)); });
  }

  static Isa::Float voted(Isa::Float sum, Isa::Float delta) {
    if constexpr (C != Consensus::count)
      return Isa::add(sum, delta);
    const Isa::Float nothing = Isa::set(0);
    sum = Isa::add_where(Isa::greater(delta, nothing), sum, Isa::set(1));
    return Isa::add_where(Isa::greater(nothing, delta), sum, Isa::set(-1));
  }

  Isa::Float total(int64_t i) const {
    const Isa::Float sum = Isa::load(sums_ + i), nothing = Isa::set(0);
    if constexpr (C == Consensus::none)
      return merge_.normalize ? normalized(sum, Isa::set(merge_.divisor)) : sum;
    // A tie elects plus.
    const Isa::Float sign = Isa::select(Isa::not_at_most(nothing, sum), Isa::set(-1), Isa::set(1));
    Isa::Float total = nothing, divisor = nothing;
    for (int64_t m = 0; m < merge_.models; ++m) {
      const Isa::Float delta = Isa::load(deltas_ + m * merge_tile + i);
      // Also true of nan.
      const Isa::Mask agrees = Isa::not_at_most(Isa::mul(delta, sign), nothing);
      total = Isa::add_where(agrees, total, delta);
      divisor = Isa::add_where(agrees, divisor, Isa::set(merge_.terms[m].weight));
    }
    return merge_.normalize ? normalized(total, divisor) : total;
  }

  const DeltaMerge& merge_;
  const int64_t first_, count_;
  float *base_, *sums_, *deltas_;
};

template <Consensus C>
void deltas_with(const DeltaMerge& merge, int64_t first, int64_t count, void* out, DType result,
                 float* scratch) {
  visit_dtype(merge.dtype, [&](auto items) {
    for (int64_t done = 0; done < count; done += merge_tile) {
      const int64_t rest = count - done < merge_tile ? count - done : merge_tile;
      DeltaTile<C, decltype(items)> tile(merge, first + done, rest, scratch);
      tile.write(static_cast<char*>(out), result);
    }
  });
}

void merge_deltas(const DeltaMerge& merge, int64_t first, int64_t count, void* out, DType result,
                  float* scratch) {
  if (merge.consensus == Consensus::none)
    deltas_with<Consensus::none>(merge, first, count, out, result, scratch);
  else if (merge.consensus == Consensus::sum)
    deltas_with<Consensus::sum>(merge, first, count, out, result, scratch);
  else
    deltas_with<Consensus::count>(merge, first, count, out, result, scratch);
}

// Calls use(magnitudes, how many) for groups of vectors of the magnitudes of model - base. Lanes
// behind the end hold nan.
template <class Use>
inline void over_magnitudes(const void* base_, const void* model_, DType dtype, int64_t count,
                            const Use& use) {
  const char *base = static_cast<const char*>(base_), *model = static_cast<const char*>(model_);
  visit_dtype(dtype, [&](auto items) {
    using Source = decltype(items);
    Isa::Float sizes[unrolled];
    int64_t i = 0;
    for (; i + unrolled * W <= count; i += unrolled * W) {
      for (int64_t u = 0; u < unrolled; ++u)
        sizes[u] =
            Isa::abs(Isa::sub(Source::load(model, i + u * W), Source::load(base, i + u * W)));
      use(sizes, unrolled * W);
    }
    for (; i < count; i += W) {
      const int64_t rest = count - i < W ? count - i : W;
      sizes[0] = Isa::abs(Isa::sub(Source::load_part(model, i, rest, __builtin_nanf("")),
                                   Source::load_part(base, i, rest, 0)));
      use(sizes, rest);
    }
  });
}

// Their bits, for `count` rounded up to whole vectors.
inline void bits_of_all(const Isa::Float* sizes, int64_t count, uint32_t* bits) {
  float buffer[unrolled * W];
  for (int64_t u = 0; u * W < count; ++u)
    Isa::store(buffer + u * W, sizes[u]);
  std::memcpy(bits, buffer, size_t((count + W - 1) / W * W) * sizeof(float));
}

// Neighbours are counted in different tables: equal ones would wait for each other.
void upper_halves(const void* base, const void* model, DType dtype, int64_t count, uint32_t* bins) {
  constexpr int64_t tables = magnitude_bins / upper_bins;
  over_magnitudes(base, model, dtype, count, [&](const Isa::Float* sizes, int64_t number) {
    uint32_t bits[unrolled * W];
    bits_of_all(sizes, number, bits);
    for (int64_t j = 0; j < number; ++j)
      ++bins[j % tables * upper_bins + (bits[j] >> 16)];
  });
}

void lower_halves(const void* base, const void* model, DType dtype, int64_t count, uint32_t upper,
                  uint32_t* bins) {
  over_magnitudes(base, model, dtype, count, [&](const Isa::Float* sizes, int64_t number) {
    // Few vectors hold one of the numbers that are wanted.
    for (int64_t u = 0; u * W < number; ++u) {
      if (!Isa::any(Isa::upper_is(sizes[u], upper)))
        continue;
      uint32_t bits[W];
      const int64_t rest = number - u * W < W ? number - u * W : W;
      bits_of_all(sizes + u, rest, bits);
      for (int64_t j = 0; j < rest; ++j)
        if (bits[j] >> 16 == upper)
          ++bins[bits[j] & 0xffff];
    }
  });
}

// Of `count` magnitudes from low to high, where they begin.
Places split_ends(float* values, int64_t count, float low, float high) {
  const Isa::Float least = Isa::set(low), most = Isa::set(high);
  Isa::Float at_low = Isa::set(0);
  int64_t between = 0;
  // What is written lies behind what is still to be read at no time.
  const auto keep = [&](Isa::Float size) {
    at_low = Isa::add_where(Isa::at_least(least, size), at_low, Isa::set(1));
    const Isa::Mask inside = Isa::both(Isa::greater(size, least), Isa::greater(most, size));
    between += Isa::compress(values + between, inside, size);
  };
  sweep(
      count, [&](int64_t i) { keep(Isa::load(values + i)); },
      [&](int64_t i, int64_t rest) { keep(load_part(values + i, rest, __builtin_nanf(""))); });
  const int64_t equal = int64_t(Isa::sum(at_low));
  return {0, equal, between, count - equal - between};
}

Places within(const void* base, const void* model, DType dtype, int64_t count, float low,
              float high, float* values) {
  const Isa::Float least = Isa::set(low), most = Isa::set(high);
  Isa::Float sums[unrolled];
  for (int64_t u = 0; u < unrolled; ++u)
    sums[u] = Isa::set(0);
  int64_t found = 0;
  over_magnitudes(base, model, dtype, count, [&](const Isa::Float* sizes, int64_t number) {
    for (int64_t u = 0; u * W < number; ++u) {
      const Isa::Mask is_up_to = Isa::at_least(most, sizes[u]);
      sums[u] = Isa::add_where(is_up_to, sums[u], Isa::set(1));
      const Isa::Mask inside = Isa::both(is_up_to, Isa::at_least(sizes[u], least));
      found += Isa::compress(values + found, inside, sizes[u]);
    }
  });
  for (int64_t u = 1; u < unrolled; ++u)
    sums[0] = Isa::add(sums[0], sums[u]);
  // Few are inside, so that only they are told apart from the ends.
  Places places = split_ends(values, found, low, high);
  places.below = int64_t(Isa::sum(sums[0])) - found;
  return places;
}

bool finite(const void* x, DType dtype, int64_t count) {
  // What is nan or infinite less itself is nan, and stays so in a sum.
  Isa::Float sums[unrolled];
  for (int64_t u = 0; u < unrolled; ++u)
    sums[u] = Isa::set(0);
  const auto add = [&](int64_t u, Isa::Float a) { sums[u] = Isa::add(sums[u], Isa::sub(a, a)); };
  const char* data = static_cast<const char*>(x);
  visit_dtype(dtype, [&](auto items) {
    using Source = decltype(items);
    int64_t i = 0;
    for (; i + unrolled * W <= count; i += unrolled * W)
      for (int64_t u = 0; u < unrolled; ++u)
        add(u, Source::load(data, i + u * W));
    for (; i + W <= count; i += W)
      add(0, Source::load(data, i));
    if (i < count)
      add(0, Source::load_part(data, i, count - i, 0));
  });
  for (int64_t u = 1; u < unrolled; ++u)
    sums[0] = Isa::add(sums[0], sums[u]);
  return !Isa::any(Isa::unordered(sums[0]));
}

void fill_merge(MergeKernels& k) {
  k.linear = merge_linear;
  k.deltas = merge_deltas;
  k.upper_halves = upper_halves;
  k.lower_halves = lower_halves;
  k.within = within;
  k.finite = finite;
}

} // namespace
} // namespace petkit
