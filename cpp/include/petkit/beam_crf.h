// Linear-chain CRFs over a vocabulary whose transitions have low rank, restricted to a few
// candidates at each position: score(a, b) = left[a] D right[b], where D is the identity or a
// matrix of its own for each step. Torch-free.
//
// Rows of candidates are crf_stride(beam) numbers long and rows of factors crf_stride(rank); behind
// the last candidate the unary scores are -infinity.
#pragma once

#include <cstdint>

#include "petkit/crf.h"

namespace petkit {

template <class Real> struct BeamFactors {
  const Real *left, *right; // (vocab, rank)
  int64_t rank, beam;

  int64_t stride() const { return crf_stride(beam); }
  int64_t rank_stride() const { return crf_stride(rank); }
};

// One row of a batch without its masked positions.
template <class Real> struct BeamSequence {
  int64_t length;
  const int32_t* candidates;  // (length, beam) entries of the vocabulary
  const Real* unary;          // (length, stride) their emissions
  const Real* const* dynamic; // D (rank, rank) of the step into each position; null for identity
};

// Forward variables of all steps, as in CrfForward.
template <class Real> struct BeamForward {
  Real* alphas;    // (length, stride)
  double* offsets; // (length)
};

// Gradients of one sequence's log-partition times `weight`.
template <class Real> struct BeamGradient {
  double weight;
  Real* unary;          // (length, stride)
  Real *left, *right;   // (length, beam, rank_stride), of the candidates' factors
  Real* const* dynamic; // (rank, rank) each, added to; null where sequence.dynamic is
};

template <class Real> struct BeamKernels {
  // Returns log_z. `scratch` holds beam_scratch numbers, here and below.
  double (*forward)(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                    const BeamForward<Real>& result, Real* scratch);
  void (*backward)(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                   const BeamForward<Real>& forward, double log_z,
                   const BeamGradient<Real>& gradient, Real* scratch);
  // Fills the places in the beam of the best path. `pointers` holds length * stride numbers of two
  // bytes.
  void (*viterbi)(const BeamFactors<Real>& factors, const BeamSequence<Real>& sequence,
                  uint16_t* pointers, int64_t* places, Real* scratch);
};

constexpr int64_t beam_scratch(int64_t beam, int64_t rank) {
  const int64_t stride = crf_stride(beam), rank_stride = crf_stride(rank);
  // Matrices of candidates by candidates, of candidates by factors, of factors by both, and rows.
  return 3 * beam * stride + 3 * beam * rank_stride + rank * (stride + rank_stride) + 8 * stride;
}

const BeamKernels<double>& beam_double_kernels();

} // namespace petkit
