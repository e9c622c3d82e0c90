// The largest numbers of a row and where they are, by one block that reads the row once.
//
// An entry is a number's bits in rising order and the complement of its position, so that all
// entries differ, equal numbers come in the order of their positions, and the order in which
// threads append does not show. More entries than fit are found by reading the row again for those
// behind the last one found.
#pragma once

#include <cstring>

#include "common/numeric.cuh"
#include "common/reduce.cuh"

namespace petkit::cuda {

constexpr int candidate_threads = 256;
constexpr int candidate_values = 4; // of a thread at a time
constexpr int candidate_tile = candidate_threads * candidate_values;
constexpr int candidate_room = 2 * candidate_tile;
constexpr int most_at_once = candidate_room - candidate_tile; // found by one pass over the row

template <class Real> struct CandidateEntry;

template <> struct CandidateEntry<float> {
  unsigned long long key;

  __device__ static CandidateEntry of(float value, int64_t position) {
    unsigned bits;
    // A sum with 0 makes one zero of two. A nan is above every number, so that it shows.
    const float number = value + 0.0f;
    memcpy(&bits, &number, sizeof bits);
    const unsigned rising = value != value ? ~1u : bits >> 31 ? ~bits : bits | 1u << 31;
    return {static_cast<unsigned long long>(rising) << 32 | unsigned(~position)};
  }
  __device__ static CandidateEntry least() { return {0}; }
  __device__ static CandidateEntry most() { return {~0ull}; }
  __device__ int64_t position() const { return int64_t(~unsigned(key)); }
  __device__ bool below(const CandidateEntry& other) const { return key < other.key; }
};

template <> struct CandidateEntry<double> {
  unsigned long long rising;
  unsigned place; // complement of the position

  __device__ static CandidateEntry of(double value, int64_t position) {
    unsigned long long bits;
    const double number = value + 0.0;
    memcpy(&bits, &number, sizeof bits);
    const unsigned long long up = bits >> 63 ? ~bits : bits | 1ull << 63;
    return {value != value ? ~1ull : up, unsigned(~position)};
  }
  __device__ static CandidateEntry least() { return {0, 0}; }
  __device__ static CandidateEntry most() { return {~0ull, ~0u}; }
  __device__ int64_t position() const { return int64_t(~place); }
  __device__ bool below(const CandidateEntry& other) const {
    return rising != other.rising ? rising < other.rising : place < other.place;
  }
};

// The `wanted` (at most most_at_once) largest entries below a ceiling, gathered in shared memory
// while the row passes by. Every thread of the block must call every function.
template <class Real> struct GatheredCandidates {
  using Entry = CandidateEntry<Real>;
  Entry* entries; // candidate_room
  int* count;
  int wanted;
  Entry floor, ceiling; // only entries between them are of interest

  __device__ void clear() {
    floor = Entry::least();
    if (threadIdx.x == 0)
      *count = 0;
    __syncthreads();
  }

  // Takes the thread's entry of each of a tile's parts.
  __device__ void add(const Entry (&own)[candidate_values], int64_t valid) {
#pragma unroll
    for (int i = 0; i < candidate_values; ++i)
      if (i * candidate_threads < valid && floor.below(own[i]) && own[i].below(ceiling))
        entries[atomicAdd(count, 1)] = own[i];
    __syncthreads();
    // An early bound keeps most of the row out; a late one saves sorting.
    const int limit = wanted <= most_at_once / 4 ? most_at_once / 2 : most_at_once;
    if (*count > limit)
      keep();
    __syncthreads();
  }

  // Sorts what is there, largest first, and drops all behind the last wanted one.
  __device__ void keep() {
    const int size = pad();
    for (int run = 2; run <= size; run *= 2)
      for (int step = run / 2; step > 0; step /= 2) {
        __syncthreads();
        exchange(size, run, step);
      }
    __syncthreads();
    if (*count >= wanted)
      floor = entries[wanted - 1];
    __syncthreads();
    if (threadIdx.x == 0 && *count > wanted)
      *count = wanted;
    __syncthreads();
  }

private:
  // Fills up to a power of two, as the sorting network needs.
  __device__ int pad() {
    int size = 2;
    while (size < *count)
      size *= 2;
    for (int i = *count + int(threadIdx.x); i < size; i += candidate_threads)
      entries[i] = Entry::least();
    return size;
  }
  __device__ void exchange(int size, int run, int step) {
    for (int pair = int(threadIdx.x); pair < size / 2; pair += candidate_threads) {
      // `step` is a power of two.
      const int low = 2 * pair - (pair & (step - 1)), high = low + step;
      const bool falling = (low & run) == 0;
      const Entry a = entries[low], b = entries[high];
      if (a.below(b) == falling) {
        entries[low] = b;
        entries[high] = a;
      }
    }
  }
};

// Loads the entries of a tile; neighbouring threads read neighbouring numbers.
template <class Real, class T, class Widen>
__device__ inline void load_candidates(const T* row, int64_t first, int64_t vocab,
                                       const Widen& widen,
                                       CandidateEntry<Real> (&own)[candidate_values]) {
#pragma unroll
  for (int i = 0; i < candidate_values; ++i) {
    const int64_t position = first + i * candidate_threads;
    own[i] = position < vocab ? CandidateEntry<Real>::of(widen(row[position]), position)
                              : CandidateEntry<Real>::least();
  }
}

// Calls each(i, position) for the places 0 to count - 1 of the largest numbers, in falling order;
// `count` is at most `vocab`. Every thread of the block must call it.
template <class Real, class T, class Widen, class Each>
__device__ inline void find_largest(const T* row, int64_t vocab, int64_t count,
                                    CandidateEntry<Real>* entries, int* gathered_count,
                                    const Widen& widen, const Each& each) {
  using Entry = CandidateEntry<Real>;
  GatheredCandidates<Real> gathered{entries, gathered_count, 0, Entry::least(), Entry::most()};
  for (int64_t found = 0; found < count; found += gathered.wanted) {
    const int64_t rest = count - found;
    gathered.wanted = int(rest < most_at_once ? rest : most_at_once);
    gathered.clear();
    // Whole tiles, so that all threads meet at the barriers.
    for (int64_t tile = 0; tile < vocab; tile += candidate_tile) {
      const int64_t first = tile + threadIdx.x;
      Entry own[candidate_values];
      load_candidates(row, first, vocab, widen, own);
      gathered.add(own, vocab - first);
    }
    gathered.keep();
    for (int i = int(threadIdx.x); i < gathered.wanted; i += candidate_threads)
      each(found + i, entries[i].position());
    gathered.ceiling = entries[gathered.wanted - 1];
    __syncthreads();
  }
}

} // namespace petkit::cuda
