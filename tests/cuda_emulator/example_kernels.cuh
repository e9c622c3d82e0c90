// Small kernels, most with one mistake each that the emulator must report.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common/numeric.cuh"
#include "common/reduce.cuh"
#include "emulator/memory.h"

namespace examples {

__global__ void missed_barrier() {
  if (threadIdx.x != 0)
    __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void missed_shuffle() {
  if (threadIdx.x % 32 != 5)
    petkit::cuda::warp_sum(1.f);
}

__global__ void reads_past_end(const float* from, float* to, int count) {
  to[0] = from[count + int(threadIdx.x)];
}

__global__ void writes_before_start(float* to) { to[-1 - int(threadIdx.x)] = 1.f; }

// Lacks the barrier between writing and reading shared memory: wrong in all orders but one.
__global__ void reverse_without_barrier(const float* from, float* to) {
  PETKIT_SHARED(float, values, 64);
  values[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void reads_unwritten_shared(float* to) {
  PETKIT_SHARED(float, fixed, 4);
  PETKIT_DYNAMIC_SHARED(dynamic);
  if (threadIdx.x == 0)
    to[0] = fixed[0], to[1] = dynamic[0], fixed[0] = dynamic[0] = 1.f;
}

__global__ void collectives(float* to) {
  const int lane = petkit::cuda::lane_index();
  const unsigned ballot = __ballot_sync(~0u, lane % 3 == 0);
  const float moved = __shfl_down_sync(~0u, float(lane), 4),
              from_third = __shfl_sync(~0u, float(lane), 3);
  atomicAdd(to + 96, 1.f);
  to[lane] = moved;
  to[32 + lane] = from_third;
  to[64 + lane] = float(__popc(ballot));
}

inline pybind11::array_t<float> run(const std::string& name, unsigned seed) {
  emulator::machine.seed = seed;
  emulator::Buffer source(64 * sizeof(float)), target(128 * sizeof(float));
  float *from = source.as<float>(), *to = target.as<float>();
  for (int i = 0; i < 64; ++i)
    from[i] = float(i);
  for (int i = 0; i < 128; ++i)
    to[i] = 0.f;
  if (name == "missed_barrier")
    PETKIT_LAUNCH(missed_barrier, dim3(1), dim3(64), 0, nullptr);
  else if (name == "two_barriers")
    PETKIT_LAUNCH(two_barriers, dim3(1), dim3(64), 0, nullptr);
  else if (name == "missed_shuffle")
    PETKIT_LAUNCH(missed_shuffle, dim3(1), dim3(64), 0, nullptr);
  else if (name == "reads_past_end")
    PETKIT_LAUNCH(reads_past_end, dim3(1), dim3(1), 0, nullptr, from, to, 64);
  else if (name == "writes_before_start")
    PETKIT_LAUNCH(writes_before_start, dim3(1), dim3(1), 0, nullptr, to);
  else if (name == "reverse_without_barrier")
    PETKIT_LAUNCH(reverse_without_barrier, dim3(1), dim3(64), 0, nullptr, from, to);
  else if (name == "reads_unwritten_shared")
    PETKIT_LAUNCH(reads_unwritten_shared, dim3(2), dim3(32), 16, nullptr, to);
  else if (name == "collectives")
    PETKIT_LAUNCH(collectives, dim3(1), dim3(32), 0, nullptr, to);
  else if (name == "too_many_threads")
    PETKIT_LAUNCH(missed_barrier, dim3(1), dim3(2048), 0, nullptr);
  else if (name == "too_much_shared")
    PETKIT_LAUNCH(missed_barrier, dim3(1), dim3(32), 64 << 10, nullptr);
  source.check_margins("source");
  target.check_margins("target");
  pybind11::array_t<float> result(128);
  std::copy_n(to, 128, result.mutable_data());
  return result;
}

inline pybind11::array_t<float> round_trip(const pybind11::array_t<float>& values, bool half) {
  pybind11::array_t<float> result(values.size());
  for (pybind11::ssize_t i = 0; i < values.size(); ++i)
    result.mutable_at(i) = half ? __half2float(__float2half_rn(values.at(i)))
                                : __bfloat162float(__float2bfloat16_rn(values.at(i)));
  return result;
}

} // namespace examples

inline void bind_examples(pybind11::module_& m) {
  m.def("run_example", &examples::run);
  m.def("round_trip", &examples::round_trip);
}
