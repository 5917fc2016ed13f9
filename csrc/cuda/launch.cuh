// What the host side of every launch needs: the stream, its errors, alignment, the element type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../checks.h"
#include "stream.h"

namespace esper::cuda {

inline cudaStream_t current_stream(int32_t device) {
  return static_cast<cudaStream_t>(current_stream_handle(device));
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, kernel, " did not launch: ", cudaGetErrorString(error));
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls `run(zero of the C++ type, pack size)`: 16 bytes to a pack where `fits(elements)`, else one element.
template <typename Fits, typename Run>
void with_type(ScalarType type, const Fits& fits, const Run& run) {
  const auto pick = [&](auto zero) {
    constexpr int kVec = 16 / sizeof(zero);
    fits(kVec) ? run(zero, std::integral_constant<int, kVec>{}) : run(zero, std::integral_constant<int, 1>{});
  };
  switch (type) {
    case ScalarType::Float: return pick(float{});
    case ScalarType::Double: return pick(double{});
    case ScalarType::Half: return pick(__half{});
    default: return pick(__nv_bfloat16{});  // the checks let nothing else through
  }
}

}  // namespace esper::cuda
