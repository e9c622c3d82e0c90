#include <tuple>

#include "crf_kbest.cuh"
#include "crf_operator.h"

namespace petkit::cuda {
namespace {

std::tuple<Tensor, Tensor> list_of_paths(const Tensor emissions, const Tensor mask,
                                         const Tensor transitions, const Tensor start,
                                         const Tensor end, int64_t k) {
  const OnDevice device(
      emissions,
      {{"mask", &mask}, {"transitions", &transitions}, {"start", &start}, {"end", &end}});
  const CrfArguments in(emissions, mask, transitions, start, end);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1, got ", k);
  STD_TORCH_CHECK(k < (int64_t(1) << 31) / in.tags, "tags * k must be below 2**31, got ", in.tags,
                  " * ", k);
  const Tensor paths = new_tensor(in.mask, std::array{in.batch, k, in.time}, ScalarType::Long);
  const Tensor scores = new_tensor(in.transitions, std::array{in.batch, k}, in.real());
  TensorScratch scratch(in.transitions);
  in.dispatch([&](auto element, auto computed) {
    using T = typename decltype(element)::type;
    using Real = typename decltype(computed)::type;
    crf_kbest(in.model<Real>(), in.rows<T>(), k, output<int64_t>(paths), output<Real>(scores),
              scratch, device.stream());
  });
  return {paths, scores};
}

} // namespace
} // namespace petkit::cuda

STABLE_TORCH_LIBRARY_IMPL(petkit, CUDA, m) {
  m.impl("crf_kbest", TORCH_BOX(&petkit::cuda::list_of_paths));
}
