// The gradient of the log-partition: weighted marginals, and sums of pair marginals over the batch.
//
// The pair marginals of a step are weights of its earlier tags x exp(transition - peak) x weights
// of its later tags, so their sum over steps is a product of two (batch x time, tags) matrices
// times the weights of the transitions. Blocks take a tile of it over a part of the steps; parts
// are added in their order, so that every run gives the same bits.
#pragma once

#include "crf_posterior.cuh"

namespace petkit::cuda {

constexpr int pair_threads = 256;
constexpr int pair_tile = 64;  // tags of a tile along each side
constexpr int pair_chunk = 16; // steps that lie in shared memory at a time
constexpr int pair_side = 4;   // a thread has pair_side^2 of the tile's sums
constexpr int pair_lanes = pair_tile / pair_side;
constexpr int64_t largest_parts_bytes = 64 << 20;

template <class Real> struct CrfPairs {
  CrfModel<Real> model;
  const Real *alphas, *later, *row_weights; // see CrfForward and CrfPosterior
  const bool* mask;
  int64_t time, places;    // places: batch x time
  int64_t places_per_part; // a multiple of pair_chunk
  Real* parts;             // (parts, tags, tags)

  __device__ Real weight(int64_t place) const { return row_weights[place / time]; }
  // Whether `later` is set.
  __device__ bool counts(int64_t place) const { return mask[place] && weight(place) != 0; }
};

// Loads a chunk of both matrices; true where a weight of this thread is too large to be one.
template <class Real>
__device__ inline bool crf_load_chunk(const CrfPairs<Real>& pairs, int64_t first, int64_t last,
                                      int64_t from_tile, int64_t to_tile, Real* earlier,
                                      Real* later) {
  const int64_t tags = pairs.model.tags;
  bool large = false;
  for (int i = int(threadIdx.x); i < pair_chunk * pair_tile; i += pair_threads) {
    const int64_t place = first + i / pair_tile, from = from_tile + i % pair_tile,
                  to = to_tile + i % pair_tile;
    const bool valid = place < last && pairs.counts(place);
    earlier[i] = valid && from < tags ? exp_of(pairs.alphas[place * tags + from]) : Real(0);
    const Real log = valid && to < tags ? pairs.later[place * tags + to] : Real(-INFINITY);
    const bool over = log > crf_largest_exponent<Real>();
    large = large || over;
    later[i] = over || log == -INFINITY ? Real(0) : exp_of(log) * pairs.weight(place);
  }
  return large;
}

// The pairs whose later weight is too large, one exponential each.
template <class Real>
__device__ inline void crf_exact_pair(const CrfPairs<Real>& pairs, int64_t first, int64_t last,
                                      int64_t from, int64_t to, Real* sum) {
  const int64_t tags = pairs.model.tags;
  const Real transition = pairs.model.transitions[from * tags + to];
  if (transition == -INFINITY)
    return;
  for (int64_t place = first; place < last; ++place) {
    if (!pairs.counts(place) || !(pairs.later[place * tags + to] > crf_largest_exponent<Real>()))
      continue;
    const Real onward = transition - pairs.model.peaks[to] + pairs.later[place * tags + to];
    *sum += pairs.weight(place) * exp_of(pairs.alphas[place * tags + from] + onward);
  }
}

// Calls f(i, j, from, to) for the thread's sums inside the matrix.
template <class F>
__device__ inline void crf_each_pair(int64_t tags, int64_t from_tile, int64_t to_tile, const F& f) {
  const int across = int(threadIdx.x) % pair_lanes, down = int(threadIdx.x) / pair_lanes;
#pragma unroll
  for (int i = 0; i < pair_side; ++i)
#pragma unroll
    for (int j = 0; j < pair_side; ++j) {
      const int64_t from = from_tile + down * pair_side + i, to = to_tile + across + j * pair_lanes;
      if (from < tags && to < tags)
        f(i, j, from, to);
    }
}

template <class Real>
__device__ inline void crf_multiply_chunk(const Real* earlier, const Real* later,
                                          Real (&sums)[pair_side][pair_side]) {
  const int across = int(threadIdx.x) % pair_lanes, down = int(threadIdx.x) / pair_lanes;
#pragma unroll 4
  for (int step = 0; step < pair_chunk; ++step) {
    Real from[pair_side], to[pair_side];
#pragma unroll
    for (int i = 0; i < pair_side; ++i) {
      from[i] = earlier[step * pair_tile + down * pair_side + i];
      to[i] = later[step * pair_tile + across + i * pair_lanes];
    }
#pragma unroll
    for (int i = 0; i < pair_side; ++i)
#pragma unroll
      for (int j = 0; j < pair_side; ++j)
        sums[i][j] += from[i] * to[j];
  }
}

template <class Real>
__global__ void __launch_bounds__(pair_threads) crf_pairs_kernel(CrfPairs<Real> pairs) {
  PETKIT_SHARED(Real, earlier, pair_chunk * pair_tile);
  PETKIT_SHARED(Real, later, pair_chunk * pair_tile);
  const int64_t tags = pairs.model.tags, tiles = ceil_div(tags, pair_tile);
  const int64_t from_tile = blockIdx.x / tiles * pair_tile,
                to_tile = blockIdx.x % tiles * pair_tile;
  const int64_t begin = blockIdx.y * pairs.places_per_part;
  const int64_t full = begin + pairs.places_per_part,
                end = full < pairs.places ? full : pairs.places;
  Real* part = pairs.parts + blockIdx.y * tags * tags;
  Real sums[pair_side][pair_side] = {};
  // Memory holds what exceeds the range of the sums; it is rarely touched before the end.
  crf_each_pair(tags, from_tile, to_tile,
                [&](int, int, int64_t from, int64_t to) { part[from * tags + to] = 0; });
  for (int64_t first = begin; first < end; first += pair_chunk) {
    const int64_t last = first + pair_chunk < end ? first + pair_chunk : end;
    const bool large = crf_load_chunk(pairs, first, last, from_tile, to_tile, earlier, later);
    // The barriers of the sum complete the chunk for all threads.
    const bool exact = block_sum(int(large)) > 0;
    crf_multiply_chunk(earlier, later, sums);
    if (exact)
      crf_each_pair(tags, from_tile, to_tile, [&](int, int, int64_t from, int64_t to) {
        crf_exact_pair(pairs, first, last, from, to, part + from * tags + to);
      });
    __syncthreads();
  }
  crf_each_pair(tags, from_tile, to_tile, [&](int i, int j, int64_t from, int64_t to) {
    part[from * tags + to] += sums[i][j] * pairs.model.weights[from * tags + to];
  });
}

constexpr int sum_columns = 32, sum_lanes = 8;

// sums[i] = parts[0][i] + parts[1][i] + ..., in an order that depends on nothing but their number.
template <class Real>
__global__ void __launch_bounds__(sum_columns* sum_lanes)
    crf_add_parts_kernel(const Real* __restrict__ parts, int64_t count, int64_t columns,
                         Real* __restrict__ sums) {
  PETKIT_SHARED(double, lanes, sum_lanes* sum_columns);
  const int lane = int(threadIdx.x) / sum_columns, place = int(threadIdx.x) % sum_columns;
  for (int64_t first = int64_t(blockIdx.x) * sum_columns; first < columns;
       first += int64_t(gridDim.x) * sum_columns) {
    const int64_t column = first + place;
    double sum = 0;
    for (int64_t part = lane; part < count && column < columns; part += sum_lanes)
      sum += double(parts[part * columns + column]);
    lanes[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && column < columns) {
      for (int other = 1; other < sum_lanes; ++other)
        sum += lanes[other * sum_columns + place];
      sums[column] = Real(sum);
    }
    __syncthreads();
  }
}

template <class Real>
void crf_add_parts(const Real* parts, int64_t count, int64_t columns, Real* sums,
                   cudaStream_t stream) {
  const unsigned blocks = unsigned(std::min<int64_t>(ceil_div(columns, sum_columns), 1024));
  PETKIT_LAUNCH((crf_add_parts_kernel<Real>), dim3(blocks), dim3(sum_columns * sum_lanes), 0,
                stream, parts, count, columns, sums);
}

// As many parts as fill a device and as keep the sums short, within the memory for them.
template <class Real> int64_t crf_places_per_part(int64_t places, int64_t tags) {
  const int64_t tiles = ceil_div(tags, pair_tile) * ceil_div(tags, pair_tile);
  const int64_t most = largest_parts_bytes / (tags * tags * int64_t(sizeof(Real)));
  const int64_t wanted = std::max(ceil_div(256, tiles), ceil_div(places, 4096));
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(most, 1, 4096));
  const int64_t chunks = std::max<int64_t>(4, ceil_div(ceil_div(places, parts), pair_chunk));
  return chunks * pair_chunk;
}

template <class Real>
void crf_sum_pairs(CrfPairs<Real> pairs, Real* sums, Scratch& scratch, cudaStream_t stream) {
  const int64_t tags = pairs.model.tags, tiles = ceil_div(tags, pair_tile);
  pairs.places_per_part = crf_places_per_part<Real>(pairs.places, tags);
  const int64_t parts = ceil_div(pairs.places, pairs.places_per_part);
  pairs.parts = scratch.take<Real>(parts * tags * tags, "pairs of parts");
  if (parts > 0)
    PETKIT_LAUNCH((crf_pairs_kernel<Real>), dim3(grid_x(tiles * tiles), grid_y(parts)),
                  dim3(pair_threads), 0, stream, pairs);
  crf_add_parts(pairs.parts, parts, tags * tags, sums, stream);
}

// Gradients of the rows' log_z times `grad` (batch). That of the emissions is (batch, time, tags).
template <class T, class Real> struct CrfGradient {
  const Real* grad;
  T* emissions;
  Real *transitions, *start, *end;
};

template <class T, class Real>
void crf_log_partition_backward(CrfModel<Real> model, const CrfBatch<T>& batch,
                                const CrfGradient<T, Real>& gradient, Scratch& scratch,
                                cudaStream_t stream) {
  const int64_t tags = model.tags, places = batch.batch * batch.time;
  CrfPosterior<T, Real> result{gradient.emissions, gradient.grad};
  result.later = scratch.take<Real>(places * tags, "later");
  result.first = scratch.take<Real>(batch.batch * tags, "first");
  result.last = scratch.take<Real>(batch.batch * tags, "last");
  CrfForward<Real> forward;
  if (batch.batch > 0)
    crf_posterior(model, batch, forward, result, scratch, stream);
  const CrfPairs<Real> pairs{model,      forward.alphas, result.later, gradient.grad,
                             batch.mask, batch.time,     places,       0,
                             nullptr};
  crf_sum_pairs(pairs, gradient.transitions, scratch, stream);
  crf_add_parts(result.first, batch.batch, tags, gradient.start, stream);
  crf_add_parts(result.last, batch.batch, tags, gradient.end, stream);
}

} // namespace petkit::cuda
