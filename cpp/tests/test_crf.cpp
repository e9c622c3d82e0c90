// The recursions of linear-chain and beam CRFs of every set of kernels, and of float64, against
// plain loops in double.
#include <algorithm>
#include <cstring>

#include "check.h"

using namespace petkit;

namespace {

constexpr double none = -INFINITY;

double log_sum(const std::vector<double>& x) {
  const double peak = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double value : x)
    sum += std::exp(value - peak);
  return peak + std::log(sum);
}

// A chain whose transitions may differ from step to step; everything that follows in double.
struct Chain {
  int64_t tags, length;
  std::vector<double> unary;       // (length, tags)
  std::vector<double> transitions; // (length, tags, tags), into each step; the first is not used

  double into(int64_t step, int64_t from, int64_t to) const {
    return transitions[size_t((step * tags + from) * tags + to)];
  }
  double at(int64_t step, int64_t tag) const { return unary[size_t(step * tags + tag)]; }

  std::vector<double> forward(int64_t last) const {
    std::vector<double> alpha(unary.begin(), unary.begin() + tags), next(alpha);
    for (int64_t step = 1; step <= last; ++step) {
      for (int64_t to = 0; to < tags; ++to) {
        std::vector<double> terms;
        for (int64_t from = 0; from < tags; ++from)
          terms.push_back(alpha[size_t(from)] + into(step, from, to));
        next[size_t(to)] = log_sum(terms) + at(step, to);
      }
      alpha = next;
    }
    return alpha;
  }
  double log_z() const { return log_sum(forward(length - 1)); }
  double best() const {
    std::vector<double> score(unary.begin(), unary.begin() + tags), next(score);
    for (int64_t step = 1; step < length; ++step) {
      for (int64_t to = 0; to < tags; ++to) {
        next[size_t(to)] = none;
        for (int64_t from = 0; from < tags; ++from)
          next[size_t(to)] = std::max(next[size_t(to)], score[size_t(from)] + into(step, from, to));
        next[size_t(to)] += at(step, to);
      }
      score = next;
    }
    return *std::max_element(score.begin(), score.end());
  }
  double score(const int64_t* path) const {
    double total = 0;
    for (int64_t step = 0; step < length; ++step)
      total += at(step, path[step]) + (step > 0 ? into(step, path[step - 1], path[step]) : 0);
    return total;
  }
};

template <class Real> double tolerance() { return sizeof(Real) == sizeof(double) ? 1e-11 : 4e-6; }

// A model in all the forms that the kernels read, with start and end scores of 0.
template <class Real> struct Model {
  std::vector<Real> scores, weights, transposed, peaks, ends;
  CrfModel<Real> view;

  Model(const std::vector<Real>& transitions, int64_t tags) {
    const int64_t stride = crf_stride(tags);
    scores.assign(size_t(tags * stride), Real(none));
    weights.assign(scores.size(), 1);
    transposed.assign(scores.size(), 1);
    peaks.assign(size_t(stride), Real(none));
    ends.assign(size_t(stride), Real(none));
    for (int64_t to = 0; to < tags; ++to) {
      ends[size_t(to)] = 0;
      for (int64_t from = 0; from < tags; ++from)
        peaks[size_t(to)] = std::max(peaks[size_t(to)], transitions[size_t(from * tags + to)]);
      for (int64_t from = 0; from < tags; ++from) {
        const Real score = transitions[size_t(from * tags + to)];
        const Real weight = Real(std::exp(double(score) - double(peaks[size_t(to)])));
        scores[size_t(from * stride + to)] = score;
        weights[size_t(from * stride + to)] = weight;
        transposed[size_t(to * stride + from)] = weight;
      }
    }
    view = {tags,    stride,       scores.data(), weights.data(), transposed.data(),
            nullptr, peaks.data(), ends.data(),   ends.data()};
  }
};

template <class Real> std::vector<Real> uniform(Random& random, int64_t count, float scale) {
  std::vector<Real> values;
  for (float value : random.floats(size_t(count)))
    values.push_back(Real(value * scale));
  return values;
}

// Two sequences of different lengths whose positions have gaps, in one group.
template <class Real>
void group_of_two(const CrfKernels<Real>& k, const char* name, int64_t tags, float scale) {
  const int64_t stride = crf_stride(tags), lengths[] = {9, 4};
  Random random{unsigned(tags)};
  const std::vector<Real> transitions = uniform<Real>(random, tags * tags, scale);
  const std::vector<Real> emissions = uniform<Real>(random, 2 * 12 * tags, 4 * scale);
  const int32_t positions[] = {0, 1, 3, 4, 6, 7, 8, 10, 11};
  const Model<Real> model(transitions, tags);
  CrfSequence sequences[2];
  Chain chains[2];
  for (int r = 0; r < 2; ++r) {
    const Real* rows = emissions.data() + r * 12 * tags;
    sequences[r] = {reinterpret_cast<const char*>(rows), tags * int64_t(sizeof(Real)),
                    DType::float32, positions, lengths[r]};
    chains[r] = {tags, lengths[r], {}, {}};
    for (int64_t step = 0; step < lengths[r]; ++step) {
      chains[r].unary.insert(chains[r].unary.end(), rows + positions[step] * tags,
                             rows + (positions[step] + 1) * tags);
      chains[r].transitions.insert(chains[r].transitions.end(), transitions.begin(),
                                   transitions.end());
    }
  }
  const CrfGroup group{sequences, 2};
  std::vector<Real> alphas(size_t(9 * crf_group * stride)), scratch(size_t(crf_scratch(stride)));
  std::vector<double> offsets(9 * crf_group);
  double log_z[crf_group], expected[crf_group];
  const CrfForward<Real> forward{alphas.data(), offsets.data(), true};
  k.forward(model.view, group, forward, log_z, scratch.data());
  std::vector<Real> marginals(emissions.size(), 0), pairs(size_t(tags * stride), 0),
      start(size_t(stride), 0), end(size_t(stride), 0);
  CrfTarget targets[2];
  for (int r = 0; r < 2; ++r)
    targets[r] = {reinterpret_cast<char*>(marginals.data() + r * 12 * tags),
                  tags * int64_t(sizeof(Real)), DType::float32, 1.0};
  k.backward(model.view, group, forward, log_z, targets, {pairs.data(), start.data(), end.data()},
             expected, scratch.data());
  double total = 0;
  for (Real pair : pairs)
    total += double(pair);
  // Scores of 240 have a last digit of 1.5e-5 in float32, and so have probabilities.
  CHECK(std::fabs(total - (8 + 3)) < 1e-5 + 2e-6 * double(scale), "%s, %d tags: %g pairs", name,
        int(tags), total);
  for (int r = 0; r < 2; ++r) {
    const double exact = chains[r].log_z();
    CHECK(std::fabs(log_z[r] - exact) <= tolerance<Real>() * (1 + std::fabs(exact)),
          "%s, %d tags: %.9g for %.9g", name, int(tags), log_z[r], exact);
    // The last step's marginals come from the forward variables alone.
    const std::vector<double> last = chains[r].forward(lengths[r] - 1);
    const Real* row = marginals.data() + (r * 12 + positions[lengths[r] - 1]) * tags;
    for (int64_t tag = 0; tag < tags; ++tag)
      CHECK(std::fabs(double(row[tag]) - std::exp(last[size_t(tag)] - exact)) <= 1e-5,
            "%s, %d tags, tag %d: %g", name, int(tags), int(tag), double(row[tag]));
    std::vector<int64_t> path(9);
    std::vector<uint16_t> pointers(size_t(9 * stride));
    const double found =
        k.viterbi(model.view, sequences[r], pointers.data(), path.data(), scratch.data());
    CHECK(std::fabs(found - chains[r].best()) <= tolerance<Real>() * (1 + std::fabs(found)),
          "%s, %d tags: best %g", name, int(tags), found);
    CHECK(std::fabs(found - chains[r].score(path.data())) <= 1e-4, "%s, %d tags: path", name,
          int(tags));
  }
}

// A beam CRF with matrices: its sum, its best path, and that its gradients add up.
template <class Real>
void beam(const BeamKernels<Real>& k, const char* name, int64_t size, int64_t rank) {
  const int64_t vocab = 2 * size, length = 6, stride = crf_stride(size);
  Random random{unsigned(size)};
  const std::vector<Real> left = uniform<Real>(random, vocab * rank, 1),
                          right = uniform<Real>(random, vocab * rank, 1),
                          matrix = uniform<Real>(random, rank * rank, 1);
  std::vector<int32_t> candidates;
  std::vector<Real> unary(size_t(length * stride), Real(none));
  for (int64_t step = 0; step < length; ++step)
    for (int64_t j = 0; j < size; ++j) {
      candidates.push_back(int32_t((step + 2 * j) % vocab));
      unary[size_t(step * stride + j)] = Real(random.uniform() * 3);
    }
  std::vector<const Real*> matrices(size_t(length), matrix.data());
  const BeamFactors<Real> factors{left.data(), right.data(), rank, size};
  const BeamSequence<Real> sequence{length, candidates.data(), unary.data(), matrices.data()};
  Chain chain{size, length, {}, {}};
  for (int64_t step = 0; step < length; ++step) {
    for (int64_t j = 0; j < size; ++j)
      chain.unary.push_back(double(unary[size_t(step * stride + j)]));
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j) {
        double score = 0;
        for (int64_t a = 0; a < rank && step > 0; ++a)
          for (int64_t b = 0; b < rank; ++b)
            score += double(left[size_t(candidates[size_t((step - 1) * size + i)] * rank + a)]) *
                     double(matrix[size_t(a * rank + b)]) *
                     double(right[size_t(candidates[size_t(step * size + j)] * rank + b)]);
        chain.transitions.push_back(score);
      }
  }
  std::vector<Real> scratch(size_t(beam_scratch(size, rank))), alphas(unary.size());
  std::vector<double> offsets(static_cast<size_t>(length));
  const BeamForward<Real> forward{alphas.data(), offsets.data()};
  const double log_z = k.forward(factors, sequence, forward, scratch.data());
  CHECK(std::fabs(log_z - chain.log_z()) <= tolerance<Real>() * (1 + std::fabs(log_z)),
        "%s, beam %d: %.9g", name, int(size), log_z);

  const size_t rows = size_t(length * size * factors.rank_stride());
  std::vector<Real> of_unary(unary.size()), of_left(rows), of_right(rows),
      of_matrix(matrix.size(), 0);
  std::vector<Real*> of_matrices(size_t(length), of_matrix.data());
  k.backward(factors, sequence, forward, log_z,
             {1.0, of_unary.data(), of_left.data(), of_right.data(), of_matrices.data()},
             scratch.data());
  // Each transition's score is linear in its left factor, in its right one and in the matrix.
  double by_left = 0, by_right = 0, by_matrix = 0, probability = 0;
  for (int64_t i = 0; i < length * size; ++i)
    for (int64_t a = 0; a < rank; ++a) {
      const size_t entry = size_t(candidates[size_t(i)] * rank + a),
                   place = size_t(i * factors.rank_stride() + a);
      by_left += double(of_left[place]) * double(left[entry]);
      by_right += double(of_right[place]) * double(right[entry]);
    }
  for (size_t i = 0; i < matrix.size(); ++i)
    by_matrix += double(of_matrix[i]) * double(matrix[i]);
  for (Real value : of_unary)
    probability += double(value);
  CHECK(std::fabs(probability - double(length)) < 1e-5, "%s: %g", name, probability);
  CHECK(std::fabs(by_left - by_right) < 1e-4 && std::fabs(by_left - by_matrix) < 1e-4,
        "%s, beam %d: %g, %g, %g", name, int(size), by_left, by_right, by_matrix);

  std::vector<uint16_t> pointers(size_t(length * stride));
  std::vector<int64_t> places(static_cast<size_t>(length));
  k.viterbi(factors, sequence, pointers.data(), places.data(), scratch.data());
  CHECK(std::fabs(chain.score(places.data()) - chain.best()) < 1e-4, "%s, beam %d: best", name,
        int(size));
}

} // namespace

int main() {
  for (int64_t tags : {1, 3, 15, 16, 17, 33, 64, 70, 300})
    // With scores far apart some sums are made again in logarithms.
    for (float scale : {1.0f, 60.0f}) {
      if (scale > 1 && tags > 70)
        continue;
      with_each_kernels([&](const Kernels& k) { group_of_two(k.crf, k.name, tags, scale); });
      group_of_two(crf_double_kernels(), "double", tags, scale);
    }
  for (int64_t size : {1, 7, 16, 40}) {
    with_each_kernels([&](const Kernels& k) { beam(k.beam_crf, k.name, size, 5); });
    beam(beam_double_kernels(), "double", size, 17);
  }
  return finish("crf");
}
