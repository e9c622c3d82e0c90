// Checks that the operators over rows of logits share.
#pragma once

#include <cmath>

#include "operator.h"
#include "softmax.cuh"

namespace petkit::cuda {

inline void check_logits(const Tensor& logits, const char* name) {
  check_dimensions(logits, name, 2);
  STD_TORCH_CHECK(logits.size(1) > 0, name, " must have a vocabulary, got shape ",
                  shape_of(logits));
}

inline void check_temperature(double temperature) {
  STD_TORCH_CHECK(temperature > 0 && std::isfinite(temperature),
                  "temperature must be positive, got ", temperature);
}

// A mask without values is none.
inline void check_row_mask(const Tensor& mask, const Tensor& logits) {
  check_type(mask, "mask", ScalarType::Bool, "bool");
  if (mask.numel() > 0)
    check_shape(mask, "mask", {logits.size(0)});
}

inline void check_overwritable(const Tensor& logits, const char* name) {
  STD_TORCH_CHECK(logits.is_contiguous(), name, " must be contiguous to be overwritten");
}

inline RowMask row_mask(const Tensor& contiguous) {
  return {contiguous.numel() > 0 ? input<bool>(contiguous) : nullptr};
}

} // namespace petkit::cuda
