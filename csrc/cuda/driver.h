// NVIDIA's driver API, found when it is first needed: this library is built and loads where there is no driver, and
// without CUDA's headers. Names and numbers are those of cuda.h.
#pragma once

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <type_traits>

namespace esper::cuda {

using DriverResult = int;
struct DriverContext;
struct DriverModule;
struct DriverFunction;

enum DeviceAttribute { kMajor = 75, kMinor = 76, kSharedOptIn = 97 };
enum FunctionAttribute { kMaxThreads = 0, kStaticShared = 1, kMaxDynamicShared = 8 };

struct Driver {
  DriverResult (*init)(unsigned);
  DriverResult (*count)(int*);
  DriverResult (*device)(int*, int);
  DriverResult (*device_attribute)(int*, int, int);
  DriverResult (*retain)(DriverContext**, int);
  DriverResult (*push)(DriverContext*);
  DriverResult (*pop)(DriverContext**);
  DriverResult (*load)(DriverModule**, const void*);
  DriverResult (*unload)(DriverModule*);
  DriverResult (*function)(DriverFunction**, DriverModule*, const char*);
  DriverResult (*function_attribute)(int*, int, DriverFunction*);
  DriverResult (*set_function_attribute)(DriverFunction*, int, int);
  DriverResult (*launch)(DriverFunction*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                         void**, void**);
  DriverResult (*error_text)(DriverResult, const char**);
  DriverResult (*parameter)(DriverFunction*, size_t, size_t*, size_t*);  // null before driver 12.4

  void check(DriverResult result, const char* doing) const {
    if (result == 0) return;
    const char* text = nullptr;
    error_text(result, &text);
    STD_TORCH_CHECK(false, doing, ": the CUDA driver says ", text ? text : "nothing known", " (error ", result, ")");
  }
};

inline const Driver& driver() {
  static const Driver found = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const char* said = library ? "" : dlerror();
    STD_TORCH_CHECK(library != nullptr, "no CUDA driver here (", said,
                    "): install NVIDIA's driver; `nvidia-smi` says whether it works");
    const auto find = [&](auto& to, const char* name) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(dlsym(library, name));
      return to != nullptr;
    };
    Driver d{};
    const bool whole =
        find(d.init, "cuInit") && find(d.count, "cuDeviceGetCount") && find(d.device, "cuDeviceGet") &&
        find(d.device_attribute, "cuDeviceGetAttribute") && find(d.retain, "cuDevicePrimaryCtxRetain") &&
        find(d.push, "cuCtxPushCurrent_v2") && find(d.pop, "cuCtxPopCurrent_v2") &&
        find(d.load, "cuModuleLoadData") && find(d.unload, "cuModuleUnload") &&
        find(d.function, "cuModuleGetFunction") && find(d.function_attribute, "cuFuncGetAttribute") &&
        find(d.set_function_attribute, "cuFuncSetAttribute") && find(d.launch, "cuLaunchKernel") &&
        find(d.error_text, "cuGetErrorString");
    STD_TORCH_CHECK(whole, "libcuda.so.1 lacks functions of CUDA 11: update NVIDIA's driver");
    find(d.parameter, "cuFuncGetParamInfo");
    d.check(d.init(0), "cuInit");
    return d;
  }();
  return found;
}

// The device's primary context, which torch uses too, is current while this lives.
class InContext {
 public:
  explicit InContext(DriverContext* context) { driver().check(driver().push(context), "cuCtxPushCurrent"); }
  ~InContext() {
    DriverContext* popped = nullptr;
    driver().pop(&popped);
  }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;
};

}  // namespace esper::cuda
