// torch's current stream. Needs neither CUDA's headers nor libtorch_cuda at build time.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace esper::cuda {

// libtorch_cuda is not linked: this library also loads where torch has none. It is there whenever a CUDA tensor is.
inline void* current_stream_handle(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda ? reinterpret_cast<Getter>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "libtorch_cuda.so is not loaded in this process, so there is no current CUDA stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

}  // namespace esper::cuda
