// advance_state on CUDA. Definition: advance_state_reference in esper/ops/advance_state.py.
//
// One launch on the current stream, without allocation or synchronisation, so a CUDA graph can capture it: the step is
// in device memory, and each replay moves it on.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../advance_state.h"
#include "launch.cuh"

namespace esper::cuda {

constexpr int kSeedThreads = 1024;

// One block, because every thread must have read the step before it is written.
__global__ void __launch_bounds__(kSeedThreads) advance_kernel(const __grid_constant__ State t) {
  const int64_t now = *t.step + 1;
  __syncthreads();
  if (threadIdx.x == 0) *t.step = now;
  for (int64_t s = threadIdx.x; s < t.seeds; s += blockDim.x) advance_seed(t, s, now);
}

void advance_state(const Tensor& alphas, const Tensor& ages, const Tensor& step, const Tensor& states,
                   const Tensor& ramp_begins, const Tensor& ramp_steps, int64_t ramping, int64_t counting) {
  const State t = checked_state(alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting);
  const torch::stable::accelerator::DeviceGuard guard(alphas.get_device_index());
  const int warps = static_cast<int>(t.seeds < kSeedThreads ? (t.seeds + 31) / 32 : kSeedThreads / 32);
  advance_kernel<<<1, warps ? 32 * warps : 32, 0, current_stream(alphas.get_device_index())>>>(t);
  check_launch("advance_state");
}

}  // namespace esper::cuda

STABLE_TORCH_LIBRARY_IMPL(esper_native, CUDA, m) { m.impl("advance_state", TORCH_BOX(&esper::cuda::advance_state)); }
