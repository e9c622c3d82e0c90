// crf_marginals on the CPU, with what an entropy needs besides.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "crf_posterior.h"

namespace petkit {
namespace {

using Marginals = std::tuple<Tensor, Tensor, Tensor>;

template <class Real> Marginals marginals_of(const CrfTensors& in) {
  const Tensor marginals = crf_new<Real>(in, {in.batch, in.time, in.tags});
  const CrfPosterior<Real> posterior(in, marginals, nullptr, true);
  const Tensor scores = crf_new<Real>(in, {in.batch}), log_z = crf_new<Real>(in, {in.batch});
  for (int64_t b = 0; b < in.batch; ++b) {
    crf_out<Real>(scores)[b] = Real(posterior.scores[size_t(b)]);
    crf_out<Real>(log_z)[b] = Real(posterior.log_z[size_t(b)]);
  }
  return {marginals, scores, log_z};
}

Marginals crf_marginals(const Tensor emissions, const Tensor mask, const Tensor transitions,
                        const Tensor start, const Tensor end) {
  const CrfTensors in(emissions, mask, transitions, start, end);
  return with_crf_type(emissions, [&](auto real) { return marginals_of<decltype(real)>(in); });
}

} // namespace
} // namespace petkit

STABLE_TORCH_LIBRARY_IMPL(petkit, CPU, m) {
  m.impl("crf_marginals", TORCH_BOX(&petkit::crf_marginals));
}
