// What the kernels of beam CRFs share: the batch, the candidates of each position, the scores of
// the transitions between them, the recursion over the positions, and the score of a path.
//
// Only the recursion goes step by step, one block a sequence; everything else is done for many
// positions at a time, a block each. The scores of that many transitions take memory, so the
// positions of all sequences are worked on in segments of as many steps as a budget allows.
#pragma once

#include "candidates.cuh"
#include "crf.cuh"

namespace petkit::cuda {

constexpr int64_t beam_budget_bytes = 256 << 20;

// Emissions of (batch, time, vocab) and the factors of the transitions. `candidates` (batch, time,
// beam) are entries of the vocabulary.
template <class T, class Real> struct BeamBatch {
  CrfBatch<T> rows;
  int64_t vocab, rank, beam;
  const Real *left, *right; // (vocab, rank)
  const Real* dynamic;      // (batch, time - 1, rank, rank), or null for the identity
  const int32_t* candidates = nullptr;

  int64_t places() const { return rows.batch * rows.time; }

  // The last set position before a step, or -1.
  __device__ int64_t previous(int64_t row, int64_t step) const {
    for (--step; step >= 0 && !rows.set(row, step);)
      --step;
    return step;
  }
  // Nothing that a caller passes as candidates makes a kernel read outside the vocabulary.
  __device__ int64_t candidate(int64_t row, int64_t step, int64_t place) const {
    const int64_t entry = candidates[(row * rows.time + step) * beam + place];
    return entry < 0 ? 0 : entry < vocab ? entry : vocab - 1;
  }
  __device__ Real emission(int64_t row, int64_t step, int64_t place) const {
    return crf_widen<Real>(rows.at(row, step)[candidate(row, step, place)]);
  }
  __device__ bool inside(int64_t entry) const { return entry >= 0 && entry < vocab; }
  // The matrix of the step into a position; null for the identity.
  __device__ const Real* matrix(int64_t row, int64_t step) const {
    return dynamic ? dynamic + (row * (rows.time - 1) + step - 1) * rank * rank : nullptr;
  }
};

// Steps [first, first + steps) of all sequences, and what is made for the transitions into them.
template <class Real> struct BeamSegment {
  int64_t first, steps;
  Real* scores; // (batch, steps, beam, beam): [from][to]
  Real* turned; // (batch, steps, beam, rank), left factors times the matrix; null for the identity

  // Place of a position among those of the segment.
  __device__ int64_t place(int64_t row, int64_t step) const { return row * steps + step - first; }
};

// Forward variables of all positions. The log of the sum over prefixes that end in a candidate is
// alpha + offset.
template <class Real> struct BeamForward {
  Real* alphas;    // (batch, time, beam), the largest of each is 0; masked ones are unset
  double* offsets; // (batch, time)
};

// Steps that fit into the budget when each position takes `more` numbers besides its transitions;
// at least one.
template <class T, class Real>
int64_t beam_steps(const BeamBatch<T, Real>& in, int64_t more, int64_t budget_bytes) {
  const int64_t numbers = in.beam * (in.beam + (in.dynamic ? in.rank : 0)) + more;
  const int64_t bytes = in.rows.batch * numbers * int64_t(sizeof(Real));
  return std::clamp<int64_t>(budget_bytes / bytes, 1, in.rows.time);
}

template <class T, class Real>
BeamSegment<Real> beam_segment(const BeamBatch<T, Real>& in, int64_t steps, Scratch& scratch) {
  const int64_t places = in.rows.batch * steps;
  auto* scores = scratch.take<Real>(places * in.beam * in.beam, "scores");
  auto* turned =
      in.dynamic ? scratch.take<Real>(places * in.beam * in.rank, "turned factors") : nullptr;
  return {0, steps, scores, turned};
}

// Where the candidates of all positions go. A `spoiled` position holds nan or +infinity.
struct BeamFound {
  int32_t* candidates;    // (batch, time, beam), -1 at masked positions
  bool* spoiled;          // (batch, time)
  const int64_t* targets; // (batch, time), or null
};

// The target takes the place of the worst candidate unless it is one of them. The candidates were
// written by this block.
inline __device__ void beam_include(int32_t* candidates, int64_t beam, int64_t target) {
  int found = 0;
  for (int64_t i = threadIdx.x; i < beam; i += blockDim.x)
    found |= candidates[i] == target;
  if (block_sum(found) == 0 && threadIdx.x == 0)
    candidates[beam - 1] = int32_t(target);
}

template <class T, class Real>
__global__ void __launch_bounds__(candidate_threads)
    beam_candidates_kernel(BeamBatch<T, Real> in, BeamFound result) {
  PETKIT_SHARED(CandidateEntry<Real>, entries, candidate_room);
  PETKIT_SHARED(int, count, 1);
  const int64_t row = blockIdx.x / in.rows.time, step = blockIdx.x % in.rows.time;
  int32_t* candidates = result.candidates + int64_t(blockIdx.x) * in.beam;
  if (!in.rows.set(row, step)) {
    for (int64_t i = threadIdx.x; i < in.beam; i += blockDim.x)
      candidates[i] = -1;
    return;
  }
  const T* emissions = in.rows.at(row, step);
  find_largest<Real>(
      emissions, in.vocab, in.beam, entries, count, [](T x) { return crf_widen<Real>(x); },
      [&](int64_t i, int64_t position) {
        candidates[i] = int32_t(position);
        // What is no number comes before all others.
        if (i == 0)
          result.spoiled[blockIdx.x] = !(crf_widen<Real>(emissions[position]) < INFINITY);
      });
  // A target outside the vocabulary is left out, and shows in its score.
  if (result.targets && in.inside(result.targets[blockIdx.x]))
    beam_include(candidates, in.beam, result.targets[blockIdx.x]);
}

template <class T, class Real>
void beam_find(const BeamBatch<T, Real>& in, const BeamFound& result, cudaStream_t stream) {
  PETKIT_LAUNCH((beam_candidates_kernel<T, Real>), dim3(grid_x(in.places())),
                dim3(candidate_threads), 0, stream, in, result);
}

// Products of small matrices by one block: a tile of the result at a time, whose factors pass
// through shared memory in chunks.
constexpr int product_threads = 256;
constexpr int product_tile = 64;
constexpr int product_chunk = 16;
constexpr int product_side = 4; // a thread has product_side^2 of the tile's sums
constexpr int product_lanes = product_tile / product_side;
constexpr int product_stride = product_tile + 1; // lanes that write a chunk meet in no bank
constexpr int product_numbers = 2 * product_chunk * product_stride;

// Loads at(i, k) of a chunk; threads run along k where that is how `at` lies in memory.
template <bool ALONG_K, class Real, class At>
__device__ inline void load_product_chunk(Real* chunk, int64_t first, int64_t count,
                                          int64_t first_k, int64_t inner, const At& at) {
  for (int e = int(threadIdx.x); e < product_chunk * product_tile; e += product_threads) {
    const int k = ALONG_K ? e % product_chunk : e / product_tile;
    const int i = ALONG_K ? e / product_chunk : e % product_tile;
    const bool valid = first + i < count && first_k + k < inner;
    chunk[k * product_stride + i] = valid ? at(first + i, first_k + k) : Real(0);
  }
}

template <class Real>
__device__ inline void multiply_product_chunk(const Real* a, const Real* b,
                                              Real (&sums)[product_side][product_side]) {
  const int across = int(threadIdx.x) % product_lanes, down = int(threadIdx.x) / product_lanes;
#pragma unroll 4
  for (int k = 0; k < product_chunk; ++k) {
    Real of_a[product_side], of_b[product_side];
#pragma unroll
    for (int i = 0; i < product_side; ++i) {
      of_a[i] = a[k * product_stride + down + i * product_lanes];
      of_b[i] = b[k * product_stride + across + i * product_lanes];
    }
#pragma unroll
    for (int i = 0; i < product_side; ++i)
#pragma unroll
      for (int j = 0; j < product_side; ++j)
        sums[i][j] += of_a[i] * of_b[j];
  }
}

// Calls store(i, j, the sum over k of a(i, k) b(j, k)) for i < rows and j < columns. Every thread
// of the block must call it; `shared` holds product_numbers.
template <bool A_ALONG_K, bool B_ALONG_K, class Real, class A, class B, class Store>
__device__ inline void block_product(int64_t rows, int64_t columns, int64_t inner, Real* shared,
                                     const A& a, const B& b, const Store& store) {
  Real *chunk_a = shared, *chunk_b = shared + product_chunk * product_stride;
  const int across = int(threadIdx.x) % product_lanes, down = int(threadIdx.x) / product_lanes;
  for (int64_t row = 0; row < rows; row += product_tile)
    for (int64_t column = 0; column < columns; column += product_tile) {
      Real sums[product_side][product_side] = {};
      for (int64_t k = 0; k < inner; k += product_chunk) {
        load_product_chunk<A_ALONG_K>(chunk_a, row, rows, k, inner, a);
        load_product_chunk<B_ALONG_K>(chunk_b, column, columns, k, inner, b);
        __syncthreads();
        multiply_product_chunk(chunk_a, chunk_b, sums);
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < product_side; ++i)
#pragma unroll
        for (int j = 0; j < product_side; ++j) {
          const int64_t y = row + down + i * product_lanes, x = column + across + j * product_lanes;
          if (y < rows && x < columns)
            store(y, x, sums[i][j]);
        }
    }
}

// Scores of the transitions into the positions of a segment, a block each.
template <class T, class Real>
__global__ void __launch_bounds__(product_threads)
    beam_scores_kernel(BeamBatch<T, Real> in, BeamSegment<Real> segment) {
  PETKIT_SHARED(Real, shared, product_numbers);
  const int64_t row = blockIdx.x / segment.steps, step = segment.first + blockIdx.x % segment.steps;
  const int64_t rank = in.rank, beam = in.beam;
  const int64_t before = in.rows.set(row, step) ? in.previous(row, step) : -1;
  if (before < 0)
    return;
  const auto left = [&](int64_t i, int64_t k) {
    return in.left[in.candidate(row, before, i) * rank + k];
  };
  const auto right = [&](int64_t j, int64_t k) {
    return in.right[in.candidate(row, step, j) * rank + k];
  };
  Real* scores = segment.scores + int64_t(blockIdx.x) * beam * beam;
  const auto store = [&](int64_t i, int64_t j, Real score) { scores[i * beam + j] = score; };
  const Real* matrix = in.matrix(row, step);
  if (!matrix) {
    block_product<true, true>(beam, beam, rank, shared, left, right, store);
    return;
  }
  Real* turned = segment.turned + int64_t(blockIdx.x) * beam * rank;
  block_product<true, false>(
      beam, rank, rank, shared, left, [&](int64_t m, int64_t k) { return matrix[k * rank + m]; },
      [&](int64_t i, int64_t m, Real value) { turned[i * rank + m] = value; });
  __syncthreads();
  block_product<true, true>(
      beam, beam, rank, shared, [&](int64_t i, int64_t k) { return turned[i * rank + k]; }, right,
      store);
}

template <class T, class Real>
void beam_score(const BeamBatch<T, Real>& in, const BeamSegment<Real>& segment,
                cudaStream_t stream) {
  PETKIT_LAUNCH((beam_scores_kernel<T, Real>), dim3(grid_x(in.rows.batch * segment.steps)),
                dim3(product_threads), 0, stream, in, segment);
}

// How the threads of a block share the candidates: `width` of them side by side, and `parts`
// threads for each of these, every one with a part of the candidates before.
struct BeamLayout {
  int width, parts;

  explicit BeamLayout(int64_t beam)
      : width(int(std::min<int64_t>(ceil_div(beam, warp_threads) * warp_threads, crf_threads))),
        parts(int(std::clamp<int64_t>(beam / 4, 1, crf_threads / width))) {}
  __host__ __device__ int threads() const { return width * parts; }
  // Bytes for a column of each thread. With one part for each candidate there is nothing to share.
  template <class Column> __host__ __device__ size_t column_bytes() const {
    return parts > 1 ? size_t(threads()) * sizeof(Column) : 0;
  }
};

constexpr int beam_chain_rows = 2;

// What a step brings into candidate `to`, put together from the parts; `columns` has room for what
// the layout says. Every thread of the block must call it; the first `width` get the result.
template <class Column, class Real>
__device__ inline Column beam_column(const BeamLayout& layout, const Real* before,
                                     const Real* scores, int64_t beam, int64_t to,
                                     Column* columns) {
  const int part = int(threadIdx.x) / layout.width;
  Column own = Column::none();
  if (to < beam)
    own = Column::of(before, scores + to, beam, part, layout.parts);
  if (layout.parts == 1)
    return own;
  columns[threadIdx.x] = own;
  __syncthreads();
  for (int other = 1; other < layout.parts && part == 0; ++other)
    own.add(columns[other * layout.width + threadIdx.x]);
  // `columns` may be written again only after everybody has read it.
  __syncthreads();
  return own;
}

// The recursion over a segment's positions, one block a sequence. `Column` is what is made of the
// candidates before: a log of a sum, or the best. `pointers` (batch, time, beam) are for the
// latter.
template <class Column, class T, class Real>
__global__ void __launch_bounds__(crf_threads)
    beam_chain_kernel(BeamBatch<T, Real> in, BeamSegment<Real> segment, BeamForward<Real> forward,
                      uint16_t* pointers, CrfRows<Real> rows, BeamLayout layout) {
  PETKIT_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, beam = in.beam, time = in.rows.time;
  auto* columns = reinterpret_cast<Column*>(shared);
  float* behind = shared + layout.column_bytes<Column>() / sizeof(float);
  Real *alpha = rows.of_block(behind), *next = alpha + beam;
  int64_t before = in.previous(row, segment.first);
  for (int64_t i = threadIdx.x; i < beam && before >= 0; i += blockDim.x)
    alpha[i] = forward.alphas[(row * time + before) * beam + i];
  double offset = before >= 0 ? forward.offsets[row * time + before] : 0;
  __syncthreads();
  for (int64_t step = segment.first; step < segment.first + segment.steps; ++step) {
    if (!in.rows.set(row, step))
      continue;
    const int64_t place = row * time + step;
    const Real* scores = segment.scores + segment.place(row, step) * beam * beam;
    Real highest = -INFINITY;
    for (int64_t base = 0; base < beam; base += layout.width) {
      const int64_t to = base + int(threadIdx.x) % layout.width;
      const bool mine = to < beam && int(threadIdx.x) < layout.width;
      // Read before the long sum, so that it is there behind it.
      Real value = mine ? in.emission(row, step, to) : Real(0);
      if (before >= 0) {
        const Column column = beam_column(layout, alpha, scores, beam, to, columns);
        value += column.value();
        if constexpr (Column::has_source)
          if (mine)
            pointers[place * beam + to] = uint16_t(column.source);
      }
      if (mine)
        next[to] = value, highest = larger(highest, value);
    }
    const Real peak = crf_peak(block_max(highest));
    offset += double(peak);
    for (int64_t i = threadIdx.x; i < beam; i += blockDim.x)
      forward.alphas[place * beam + i] = alpha[i] = next[i] - peak;
    if (threadIdx.x == 0)
      forward.offsets[place] = offset;
    before = step;
    __syncthreads();
  }
}

template <class T, class Real>
BeamForward<Real> beam_forward_room(const BeamBatch<T, Real>& in, Scratch& scratch) {
  return {scratch.take<Real>(in.places() * in.beam, "alphas"),
          scratch.take<double>(in.places(), "offsets")};
}

// Runs the recursion over all steps, segment by segment; `segment` is left at the last one.
template <class Column, class T, class Real>
void beam_chain(const BeamBatch<T, Real>& in, BeamSegment<Real>& segment, int64_t steps,
                const BeamForward<Real>& forward, uint16_t* pointers, Scratch& scratch,
                cudaStream_t stream) {
  const BeamLayout layout(in.beam);
  const CrfRows<Real> rows(beam_chain_rows, in.beam, in.rows.batch, scratch);
  for (int64_t first = 0; first < in.rows.time; first += steps) {
    segment.first = first, segment.steps = std::min(steps, in.rows.time - first);
    beam_score(in, segment, stream);
    PETKIT_LAUNCH((beam_chain_kernel<Column, T, Real>), dim3(grid_x(in.rows.batch)),
                  dim3(unsigned(layout.threads())),
                  layout.column_bytes<Column>() + rows.shared_bytes(), stream, in, segment, forward,
                  pointers, rows, layout);
  }
}

// left D right of a transition between two entries, in double; each lane of the warp has a part.
template <class T, class Real>
__device__ inline double beam_lane_transition(const BeamBatch<T, Real>& in, int64_t row,
                                              int64_t step, int64_t from, int64_t to) {
  const Real *left = in.left + from * in.rank, *right = in.right + to * in.rank;
  const Real* matrix = in.matrix(row, step);
  const int64_t count = matrix ? in.rank * in.rank : in.rank;
  double total = 0;
  for (int64_t i = lane_index(); i < count; i += warp_threads)
    total += matrix ? double(left[i / in.rank]) * double(matrix[i]) * double(right[i % in.rank])
                    : double(left[i]) * double(right[i]);
  return total;
}

constexpr int path_threads = 256;

// Whether a set position of the row is spoiled. Every thread of the block must call it.
template <class T, class Real>
__device__ inline bool beam_spoiled(const BeamBatch<T, Real>& in, int64_t row,
                                    const bool* spoiled) {
  int any = 0;
  for (int64_t step = threadIdx.x; step < in.rows.time; step += blockDim.x)
    any |= in.rows.set(row, step) && spoiled[row * in.rows.time + step];
  return block_sum(any) > 0;
}

// Score of one path (batch, time) of entries in each row, summed in double; a warp has every so
// many positions. Paths may be anything at masked positions.
template <class T, class Real>
__global__ void __launch_bounds__(path_threads)
    beam_path_kernel(BeamBatch<T, Real> in, const int64_t* paths, const bool* spoiled,
                     Real* scores) {
  const int64_t row = blockIdx.x, time = in.rows.time;
  const int64_t* path = paths + row * time;
  double total = 0;
  for (int64_t step = warp_index(); step < time; step += warp_count()) {
    if (!in.rows.set(row, step))
      continue;
    const int64_t to = path[step], before = in.previous(row, step);
    const int64_t from = before >= 0 ? path[before] : 0;
    // Paths cannot be checked before the launch without waiting for the device.
    if (!in.inside(to) || !in.inside(from)) {
      total = NAN;
      continue;
    }
    if (lane_index() == 0)
      total += double(crf_widen<Real>(in.rows.at(row, step)[to]));
    if (before >= 0)
      total += beam_lane_transition(in, row, step, from, to);
  }
  total = block_sum(total);
  const bool no_number = beam_spoiled(in, row, spoiled);
  if (threadIdx.x == 0)
    scores[row] = no_number ? Real(NAN) : Real(total);
}

template <class T, class Real>
void beam_path_scores(const BeamBatch<T, Real>& in, const int64_t* paths, const bool* spoiled,
                      Real* scores, cudaStream_t stream) {
  PETKIT_LAUNCH((beam_path_kernel<T, Real>), dim3(grid_x(in.rows.batch)), dim3(path_threads), 0,
                stream, in, paths, spoiled, scores);
}

} // namespace petkit::cuda
