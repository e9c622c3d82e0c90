// What the CRF operators share on the host: checks, and the kernels' views of the tensors.
#pragma once

#include <vector>

#include "common/operator.h"
#include "crf.cuh"

namespace petkit::cuda {
// Each operator has its own: torch's tensors are not visible outside a library either.
namespace {

// Memory from torch's allocator, which hands it on only to later work of the same stream.
class TensorScratch : public Scratch {
public:
  explicit TensorScratch(const Tensor& like) : like_(like) {}

protected:
  void* bytes(int64_t count, const char*) override {
    tensors_.push_back(new_tensor(like_, std::array{count}, ScalarType::Byte));
    return tensors_.back().mutable_data_ptr();
  }

private:
  Tensor like_;
  std::vector<Tensor> tensors_;
};

// The arguments that every CRF operator begins with. The mask is not looked at, since that would
// wait for the device: a row counts from its first set position.
struct CrfArguments {
  Tensor emissions, mask, transitions, start, end;
  int64_t batch, time, tags;

  CrfArguments(const Tensor& emissions_, const Tensor& mask_, const Tensor& transitions_,
               const Tensor& start_, const Tensor& end_)
      : emissions(emissions_) {
    check_dimensions(emissions, "emissions", 3);
    batch = emissions.size(0), time = emissions.size(1), tags = emissions.size(2);
    STD_TORCH_CHECK(tags > 0 && tags <= 65536, "emissions must have 1 to 65536 tags, got shape ",
                    shape_of(emissions));
    check_type(mask_, "mask", ScalarType::Bool, "bool");
    check_shape(mask_, "mask", {batch, time});
    check_shape(transitions_, "transitions", {tags, tags});
    check_shape(start_, "start", {tags});
    check_shape(end_, "end", {tags});
    const bool wide = emissions.scalar_type() == ScalarType::Double;
    const char* type_name = wide ? "float64 like emissions" : "float32";
    check_type(transitions_, "transitions", real(), type_name);
    check_type(start_, "start", real(), type_name);
    check_type(end_, "end", real(), type_name);
    mask = torch::stable::contiguous(mask_);
    transitions = torch::stable::contiguous(transitions_);
    start = torch::stable::contiguous(start_);
    end = torch::stable::contiguous(end_);
    // Batch and time may be laid out in any way.
    if (emissions.stride(2) != 1)
      emissions = torch::stable::contiguous(emissions);
  }

  // The type that is computed in.
  ScalarType real() const {
    return emissions.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  template <class Real> CrfModel<Real> model() const {
    return {tags, input<Real>(transitions), input<Real>(start), input<Real>(end)};
  }
  template <class T> CrfBatch<T> rows() const {
    return {input<T>(emissions),
            emissions.stride(0),
            emissions.stride(1),
            input<bool>(mask),
            batch,
            time};
  }

  // Calls with Element<T> of the emissions and Element<Real>.
  template <class Call> void dispatch(Call call) const {
    if (emissions.scalar_type() == ScalarType::Double)
      return call(Element<double>{}, Element<double>{});
    dispatch_type(emissions.scalar_type(), "emissions",
                  [&](auto element) { call(element, Element<float>{}); });
  }
};

} // namespace
} // namespace petkit::cuda
