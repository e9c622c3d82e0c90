// All kernels on AVX-512.
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

PETKIT_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "isa_avx512.h"

#include "crf_floats.h"
#include "divergence_impl.h"
#include "linear_impl.h"
#include "lookup_avx512.h"
#include "lookup_bank_avx512.h"
#include "merge_impl.h"
#include "quantize_impl.h"
#include "softmax_impl.h"
PETKIT_TARGET_END

namespace petkit {

Kernels make_avx512_kernels() {
  Kernels kernels{};
  kernels.name = "avx512";
  fill_quantize(kernels);
  fill_softmax(kernels);
  fill_crf(kernels.crf);
  fill_beam_crf(kernels.beam_crf);
  fill_divergence(kernels.divergence);
  fill_merge(kernels.merge);
  fill_linear(kernels);
  fill_bank<LookupRows>(kernels);
  fill_lookup(kernels);
  return kernels;
}

} // namespace petkit
#endif
