// All kernels on AVX2.
#if defined(__x86_64__)
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "petkit/half.h"
#include "petkit/kernels.h"
#include "petkit/packed.h"
#include "petkit/quantizer.h"
#include "petkit/splitmix.h"
#include "target.h"

PETKIT_TARGET_BEGIN("avx2,fma,f16c")
#include "isa_avx2.h"

#include "bank_impl.h"
#include "crf_floats.h"
#include "divergence_impl.h"
#include "linear_impl.h"
#include "merge_impl.h"
#include "quantize_impl.h"
#include "softmax_impl.h"
PETKIT_TARGET_END

namespace petkit {

Kernels make_avx2_kernels() {
  Kernels kernels{};
  kernels.name = "avx2";
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
#endif
