// All kernels on the portable fallback.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "petkit/half.h"
#include "petkit/kernels.h"
#include "petkit/packed.h"
#include "petkit/quantizer.h"
#include "petkit/splitmix.h"
#include "target.h"

#include "isa_scalar.h"

#include "bank_impl.h"
#include "crf_floats.h"
#include "divergence_impl.h"
#include "linear_impl.h"
#include "merge_impl.h"
#include "quantize_impl.h"
#include "softmax_impl.h"

namespace petkit {

Kernels make_scalar_kernels() {
  Kernels kernels{};
  kernels.name = "scalar";
  fill_quantize(kernels);
  fill_softmax(kernels);
  fill_crf(kernels.crf);
  fill_beam_crf(kernels.beam_crf);
  fill_divergence(kernels.divergence);
  fill_merge(kernels.merge);
  fill_linear(kernels);
  fill_bank<SumRows>(kernels);
  return kernels;
}

} // namespace petkit
