// Linear-chain CRFs: what their kernels are given and give back. Torch-free.
//
// `Real` is float, or double for float64 inputs. Rows of tags are `crf_stride` numbers long: behind
// the last tag lie scores of -infinity, which change nothing.
#pragma once

#include <cstdint>

#include "petkit/dtype.h"

namespace petkit {

constexpr int64_t crf_lanes = 16;
constexpr int64_t crf_stride(int64_t tags) {
  return (tags + crf_lanes - 1) / crf_lanes * crf_lanes;
}

// Sequences that go through a recursion side by side: a row of the transitions is read once for
// all.
constexpr int crf_group = 4;

// Pairs of steps whose outer products are added up together.
constexpr int64_t crf_block = 64;

template <class Real> struct CrfModel {
  int64_t tags, stride;
  const Real* scores; // (tags, stride), of [from][to]
  // (tags, stride), exp(score - peak of its column); 1 where the peak is -infinity and behind the
  // last tag, so that no sum is small there.
  const Real* weights;
  const Real* weights_t; // (tags, stride), the same of [to][from]
  const Real* scored_t;  // weights_t times the scores; null where no expected score is wanted
  const Real* peaks;     // (stride), the largest score into each tag
  const Real *start, *end;
};

// One row of a batch without its masked positions. `dtype` does not count where Real is double.
struct CrfSequence {
  const char* emissions;
  int64_t row_bytes;
  DType dtype;
  const int32_t* positions;
  int64_t length;
};

// Up to crf_group sequences, the longest first.
struct CrfGroup {
  const CrfSequence* sequences;
  int count;

  int64_t steps() const { return sequences[0].length; }
  // How many of them are longer than `step`.
  int active(int64_t step) const {
    int n = 0;
    while (n < count && sequences[n].length > step)
      ++n;
    return n;
  }
};

// Forward variables: the log of the sum over prefixes that end in a tag is alpha + offset.
// With `keep` there is a row for every step, else only the last two.
template <class Real> struct CrfForward {
  Real* alphas;    // (steps, crf_group, stride), the largest of each is 0
  double* offsets; // (steps, crf_group)
  bool keep;
};

// Where the gradient of one sequence goes; laid out as its emissions are.
struct CrfTarget {
  char* rows;
  int64_t row_bytes;
  DType dtype;
  double weight; // of the sequence's log-partition
};

// Sums over sequences and steps: (tags, stride) pairs, (stride) ends.
template <class Real> struct CrfSums {
  Real *pairs, *start, *end;
};

template <class Real> struct CrfKernels {
  void (*exponentials)(Real* values, int64_t count);
  // Fills log_z of each sequence. `scratch` holds crf_scratch numbers.
  void (*forward)(const CrfModel<Real>& model, const CrfGroup& group,
                  const CrfForward<Real>& result, double* log_z, Real* scratch);
  // Writes the weighted marginals to the targets, adds to the sums, and fills the expected score of
  // the transitions of each sequence where the model has scored_t.
  void (*backward)(const CrfModel<Real>& model, const CrfGroup& group,
                   const CrfForward<Real>& forward, const double* log_z, const CrfTarget* targets,
                   const CrfSums<Real>& sums, double* scores, Real* scratch);
  // Fills the path and returns its score, nan when an emission is nan or infinite. `pointers` holds
  // length * stride numbers of one byte up to 256 tags, else two.
  double (*viterbi)(const CrfModel<Real>& model, const CrfSequence& sequence, void* pointers,
                    int64_t* path, Real* scratch);
};

constexpr int64_t crf_scratch(int64_t stride) {
  return (3 * crf_group + 2 * crf_block + 2) * stride;
}

const CrfKernels<double>& crf_double_kernels();

} // namespace petkit
