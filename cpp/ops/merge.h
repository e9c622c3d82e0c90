// What the merging operators share: rows of models that are read where they lie, and checks.
#pragma once

#include <torch/csrc/stable/library.h>

#include "operator.h"

namespace petkit {

// Slices of models, a row for each. Rows that lie apart are not copied, only numbers that do.
class ModelRows {
public:
  explicit ModelRows(const Tensor& models)
      : kept_(in_order(models)), dtype_(dtype_of(models, "models")),
        data_(static_cast<const char*>(kept_.const_data_ptr())),
        row_bytes_(kept_.stride(0) * item_size(dtype_)) {}

  int64_t models() const { return kept_.size(0); }
  int64_t count() const { return kept_.size(1); }
  DType dtype() const { return dtype_; }
  const char* row(int64_t model) const { return data_ + model * row_bytes_; }

private:
  static Tensor in_order(const Tensor& models) {
    check_rank(models, "models", 2);
    STD_TORCH_CHECK(models.size(0) > 0, "models must hold at least one row, got 0");
    return models.size(1) <= 1 || models.stride(1) == 1 ? models
                                                        : torch::stable::contiguous(models);
  }

  Tensor kept_;
  DType dtype_;
  const char* data_;
  int64_t row_bytes_;
};

inline Tensor base_in_order(const Tensor& base, const Tensor& models) {
  check_rank(base, "base", 1);
  check_dtype(base, "base", models.scalar_type());
  STD_TORCH_CHECK(base.size(0) == models.size(1), "base must hold ", models.size(1),
                  " numbers, got ", base.size(0));
  return torch::stable::contiguous(base);
}

// One number for each model.
template <class Number>
std::vector<Number> numbers_of(const Tensor& tensor, const char* name, ScalarType dtype,
                               int64_t models) {
  check_dtype(tensor, name, dtype);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == models, name, " must hold ", models,
                  " numbers, got ", tensor.numel());
  const Tensor kept = torch::stable::contiguous(tensor);
  const Number* data = static_cast<const Number*>(kept.const_data_ptr());
  return {data, data + models};
}

// Rounded to float32.
inline std::vector<float> rounded(const Tensor& tensor, const char* name, int64_t models) {
  const std::vector<double> exact = numbers_of<double>(tensor, name, ScalarType::Double, models);
  return {exact.begin(), exact.end()};
}

inline Tensor new_slice(const Tensor& models, ScalarType dtype) {
  const std::array<int64_t, 1> shape{models.size(1)};
  Tensor fresh = torch::stable::new_empty(models, shape, dtype);
  prefer_huge_pages(fresh, shape[0] * item_size(dtype_of(fresh, "dtype")));
  return fresh;
}

} // namespace petkit
