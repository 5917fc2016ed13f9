// What kernels share: element types, 16-byte packs of elements, a walk over a matrix, a sum over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace esper::cuda {

constexpr int kThreads = 256;         // untuned: choose with bench/ops on the target device
constexpr int kResident = 4;          // blocks per multiprocessor: 64 registers a thread, so that nothing spills
constexpr int64_t kGridRows = 65535;  // the hardware's limit in y

template <typename T>
using math_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// kVec elements as one word of memory: 16 bytes, or a single element.
template <typename T, int kVec>
union Pack {
  using Word = std::conditional_t<kVec == 1, T, uint4>;
  static_assert(sizeof(Word) == sizeof(T) * kVec);
  Word word;
  T at[kVec];
  __device__ Pack() {}
};

// kVec elements at `from`, as one load where all of them are inside; what is outside reads as 0. The intrinsics say
// that the address is global and the word whole, which the compiler cannot see of a pointer out of a table.
template <int kVec, typename T>
__device__ void load(const T* from, int64_t inside, math_t<T> (&to)[kVec]) {
  Pack<T, kVec> pack;
  if (inside >= kVec) {
    pack.word = __ldg(reinterpret_cast<const typename Pack<T, kVec>::Word*>(from));
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) pack.at[i] = i < inside ? __ldg(from + i) : T(0.0f);
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) to[i] = static_cast<math_t<T>>(pack.at[i]);
}

template <int kVec, typename T>
__device__ void store(T* to, int64_t inside, const math_t<T> (&from)[kVec]) {
  Pack<T, kVec> pack;
#pragma unroll
  for (int i = 0; i < kVec; ++i) pack.at[i] = static_cast<T>(from[i]);
  if (inside >= kVec) {
    __stcg(reinterpret_cast<typename Pack<T, kVec>::Word*>(to), pack.word);
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (i < inside) __stcg(to + i, pack.at[i]);
    }
  }
}

// Calls body(row, column) for this thread's packs of a rows x width problem; offsets are 64-bit throughout.
template <int kVec, typename Body>
__device__ void each_pack(int64_t rows, int64_t width, const Body& body) {
  const int64_t across = static_cast<int64_t>(gridDim.x) * blockDim.x * kVec;
  const int64_t down = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += down) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVec;
    for (int64_t col = first; col < width; col += across) body(row, col);
  }
}

// The sum of `value` over the block, in thread 0; the order of additions is fixed.
template <typename M>
__device__ M block_sum(M value) {
  __shared__ M parts[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread % 32 == 0) parts[thread / 32] = value;
  __syncthreads();
  M total = 0;
  for (int i = 0; thread == 0 && i < kThreads / 32; ++i) total += parts[i];
  return total;
}

}  // namespace esper::cuda
