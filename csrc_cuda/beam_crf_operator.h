// What the beam CRF operators share on the host: checks, and the kernels' view of the tensors.
#pragma once

#include "beam_crf.cuh"
#include "crf_operator.h"

namespace petkit::cuda {
namespace {

// The arguments that every beam CRF operator begins with. The mask, the targets and the candidates
// are not looked at, since that would wait for the device.
struct BeamArguments {
  Tensor emissions, mask, left, right, dynamic;
  int64_t batch, time, vocab, rank, beam;

  BeamArguments(const Tensor& emissions_, const Tensor& mask_, const Tensor& left_,
                const Tensor& right_, const Tensor& dynamic_, int64_t beam_)
      : emissions(emissions_) {
    check_dimensions(emissions, "emissions", 3);
    check_dimensions(left_, "left", 2);
    batch = emissions.size(0), time = emissions.size(1), vocab = emissions.size(2);
    rank = left_.size(1), beam = std::min(beam_, vocab);
    check_sizes();
    check_type(mask_, "mask", ScalarType::Bool, "bool");
    check_shape(mask_, "mask", {batch, time});
    check_factors(left_, "left", {vocab, rank});
    check_factors(right_, "right", {vocab, rank});
    if (dynamic_.dim() == 4)
      check_factors(dynamic_, "dynamic", {batch, std::max<int64_t>(time - 1, 0), rank, rank});
    mask = torch::stable::contiguous(mask_);
    left = torch::stable::contiguous(left_);
    right = torch::stable::contiguous(right_);
    dynamic = torch::stable::contiguous(dynamic_);
    // Batch and time may be laid out in any way.
    if (emissions.stride(2) != 1)
      emissions = torch::stable::contiguous(emissions);
  }

  bool is_dynamic() const { return dynamic.dim() == 4; }
  // The type that is computed in.
  ScalarType real() const {
    return emissions.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  template <class T, class Real> BeamBatch<T, Real> view() const {
    const CrfBatch<T> rows{input<T>(emissions),
                           emissions.stride(0),
                           emissions.stride(1),
                           input<bool>(mask),
                           batch,
                           time};
    return {rows,
            vocab,
            rank,
            beam,
            input<Real>(left),
            input<Real>(right),
            is_dynamic() ? input<Real>(dynamic) : nullptr};
  }

  // Calls with Element<T> of the emissions and Element<Real>.
  template <class Call> void dispatch(Call call) const {
    if (emissions.scalar_type() == ScalarType::Double)
      return call(Element<double>{}, Element<double>{});
    dispatch_type(emissions.scalar_type(), "emissions",
                  [&](auto element) { call(element, Element<float>{}); });
  }

private:
  void check_sizes() const {
    STD_TORCH_CHECK(vocab > 0 && vocab < (int64_t(1) << 31), "emissions must have 1 to 2**31 - 1 ",
                    "entries of a vocabulary, got shape ", shape_of(emissions));
    STD_TORCH_CHECK(rank > 0, "left must have a rank of at least 1, got 0");
    STD_TORCH_CHECK(beam >= 1 && beam <= 65536, "beam must lie between 1 and 65536, got ", beam);
  }
  void check_factors(const Tensor& tensor, const char* name,
                     std::initializer_list<int64_t> shape) const {
    const bool wide = real() == ScalarType::Double;
    check_type(tensor, name, real(), wide ? "float64 like emissions" : "float32");
    check_shape(tensor, name, shape);
  }
};

} // namespace
} // namespace petkit::cuda
