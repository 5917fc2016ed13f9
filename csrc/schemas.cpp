// Every native op's signature, and nothing else. Implementations register themselves in cpu/<op>.cpp and
// cuda/<op>.cu; what the ops mean is in esper/ops/<op>.py. A library user outside Python loads this file's library
// beside libtorch and finds the ops under these names.
#include <torch/csrc/stable/library.h>

#define ESPER_TEXT_OF(x) #x
#define ESPER_TEXT(x) ESPER_TEXT_OF(x)
#ifndef ESPER_CUDA_ARCHS
#define ESPER_CUDA_ARCHS none
#endif

STABLE_TORCH_LIBRARY(esper_native, m) {
  m.def(
      "advance_state(Tensor(a!) alphas, Tensor(b!) ages, Tensor(c!) step, Tensor states, Tensor ramp_begins, "
      "Tensor ramp_steps, int ramping, int counting) -> ()");
  m.def(
      "blend(Tensor host, Tensor[] seeds, Tensor alphas, int[] spans, int channel_dim, bool convex) -> Tensor");
  m.def(
      "blend_backward(Tensor grad, Tensor? host, Tensor[] seeds, Tensor alphas, int[] spans, int channel_dim, "
      "bool convex) -> Tensor[]");
  m.def(
      "seed_stats(Tensor values, int[] spans, int channel_dim, float decay, Tensor(a!) stats) -> ()");
  m.def(
      "blend_(Tensor(a!) host, Tensor[] seeds, Tensor alphas, Tensor states, int active, int[] spans, "
      "int channel_dim, bool convex) -> ()");
  // kernels compiled ahead of time: csrc/cuda/cubin.cpp
  m.def(
      "load_cubin(Tensor image, str kernel, str layout, int num_warps, int shared_bytes, int device) -> int");
  m.def(
      "launch_cubin(int handle, Tensor(a!)[] tensors, int[] integers, float[] floats, int[] grid) -> ()");
}

// What this library was built for, as `key=value;...`. Read by esper/ops/extension.py.
extern "C" __attribute__((visibility("default"))) const char* esper_build_info() {
  return "abi=" ESPER_TEXT(TORCH_TARGET_VERSION) ";torch=" TORCH_VERSION ";cuda=" ESPER_TEXT(
      ESPER_CUDA_ARCHS) ";compiler=" __VERSION__;
}
