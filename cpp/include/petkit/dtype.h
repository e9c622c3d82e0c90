// The dtypes that kernels read and write.
#pragma once

#include <cstdint>

namespace petkit {

enum class DType { float32, bfloat16, float16 };

constexpr int64_t item_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

} // namespace petkit
