// Launches kernels that were compiled ahead of time (python -m kernels_triton.aot) from their bytes, without Triton
// and without CUDA's runtime. esper/ops/cubin.py reads the metadata beside them; a program without Python does it itself.
//
//   load_cubin    image: uint8 on the CPU. layout: see cubin_parameters.h. device: its CUDA index. Returns a handle,
//                 good until the process ends: kernels are few, and a captured graph may hold one.
//   launch_cubin  on the current stream. A block has num_warps * 32 threads. tensors, integers and floats are the
//                 kernel's parameters of that kind, in their order; nulls are not given.
//
// What guards memory is checked before the driver is touched. Nothing synchronises, so a CUDA graph can capture a launch.
#include <torch/csrc/stable/library.h>

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "../checks.h"
#include "cubin_image.h"
#include "cubin_parameters.h"
#include "driver.h"
#include "stream.h"

namespace esper::cuda {

constexpr int64_t kSharedUnasked = 48 * 1024;  // more must be asked for
constexpr std::array<int64_t, 3> kGridLimits{2147483647, 65535, 65535};

struct Kernel {
  std::vector<Parameter> parameters;
  DriverContext* context;
  DriverFunction* function;
  int device;
  unsigned threads, shared_bytes;
};

std::mutex kernels_mutex;
std::vector<std::unique_ptr<const Kernel>> kernels;

// A type as Triton writes it.
std::string element_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "fp32";
    case ScalarType::Double: return "fp64";
    case ScalarType::Half: return "fp16";
    case ScalarType::BFloat16: return "bf16";
    case ScalarType::Bool: return "i1";
    case ScalarType::Byte: return "u8";
    case ScalarType::Char: return "i8";
    case ScalarType::Short: return "i16";
    case ScalarType::Int: return "i32";
    case ScalarType::Long: return "i64";
    default: return toString(type);
  }
}

void check_parameters(const Driver& d, const Kernel& kernel) {
  if (!d.parameter) return;  // an older driver does not say; the caller's metadata is what there is
  const auto& listed = kernel.parameters;
  size_t offset = 0, bytes = 0;
  for (size_t i = 0; i < listed.size(); ++i) {
    STD_TORCH_CHECK(d.parameter(kernel.function, i, &offset, &bytes) == 0, "layout has ", listed.size(),
                    " parameters, the kernel ", i);
    STD_TORCH_CHECK(bytes == listed[i].bytes(), "layout: parameter ", i, " is ", listed[i].type, " of ",
                    listed[i].bytes(), " bytes, the kernel's has ", bytes);
  }
  STD_TORCH_CHECK(d.parameter(kernel.function, listed.size(), &offset, &bytes) != 0, "layout has ", listed.size(),
                  " parameters, the kernel more");
}

void reserve_shared(const Driver& d, const Kernel& kernel, int ordinal) {
  int fixed = 0, most = 0;
  d.check(d.function_attribute(&fixed, kStaticShared, kernel.function), "cuFuncGetAttribute");
  d.check(d.device_attribute(&most, kSharedOptIn, ordinal), "cuDeviceGetAttribute");
  const int64_t wanted = static_cast<int64_t>(kernel.shared_bytes) + fixed;
  STD_TORCH_CHECK(wanted <= most, "shared_bytes: the kernel needs ", wanted, " bytes of shared memory, the device has ",
                  most, " for a block");
  if (wanted <= kSharedUnasked) return;
  d.check(d.set_function_attribute(kernel.function, kMaxDynamicShared, static_cast<int>(kernel.shared_bytes)),
          "cuFuncSetAttribute");
}

int64_t load_cubin(const Tensor& image, std::string kernel, std::string layout, int64_t num_warps,
                   int64_t shared_bytes, int64_t device) {
  STD_TORCH_CHECK(image.is_cpu() && image.scalar_type() == ScalarType::Byte && image.dim() == 1 &&
                      image.is_contiguous(),
                  "image is ", toString(image.scalar_type()), " ", shape_text(image), " on ", device_text(image),
                  "; it must be the cubin's bytes: a contiguous Byte vector on the CPU");
  const auto bytes = static_cast<const uint8_t*>(image.const_data_ptr());
  const CubinImage read = read_cubin(bytes, static_cast<uint64_t>(image.numel()), kernel);
  STD_TORCH_CHECK(read.reason.empty(), "image is no cubin that can be used: ", read.reason);
  const Layout parsed = parse_layout(layout);
  STD_TORCH_CHECK(parsed.reason.empty(), "layout: ", parsed.reason);
  STD_TORCH_CHECK(1 <= num_warps && num_warps <= 32, "num_warps is ", num_warps, ", must be in [1, 32]");
  STD_TORCH_CHECK(0 <= shared_bytes && shared_bytes < (1 << 30), "shared_bytes is ", shared_bytes,
                  ", must be in [0, 2^30)");
  const Driver& d = driver();
  int count = 0, ordinal = 0, major = 0, minor = 0;
  d.check(d.count(&count), "cuDeviceGetCount");
  STD_TORCH_CHECK(0 <= device && device < count, "device is ", device, "; this machine has ", count, " CUDA devices");
  d.check(d.device(&ordinal, static_cast<int>(device)), "cuDeviceGet");
  d.check(d.device_attribute(&major, kMajor, ordinal), "cuDeviceGetAttribute");
  d.check(d.device_attribute(&minor, kMinor, ordinal), "cuDeviceGetAttribute");
  const std::string wrong = why_wrong_architecture(read.sm, major, minor);
  STD_TORCH_CHECK(wrong.empty(), "image does not run on cuda:", device, ": ", wrong);

  auto loaded = std::make_unique<Kernel>(Kernel{parsed.parameters, nullptr, nullptr, static_cast<int>(device),
                                                static_cast<unsigned>(num_warps * 32),
                                                static_cast<unsigned>(shared_bytes)});
  d.check(d.retain(&loaded->context, ordinal), "cuDevicePrimaryCtxRetain");
  const InContext in_context(loaded->context);
  DriverModule* module = nullptr;
  d.check(d.load(&module, bytes), "cuModuleLoadData");
  try {
    d.check(d.function(&loaded->function, module, kernel.c_str()), "cuModuleGetFunction");
    check_parameters(d, *loaded);
    reserve_shared(d, *loaded, ordinal);
  } catch (...) {
    d.unload(module);
    throw;
  }
  const std::lock_guard<std::mutex> lock(kernels_mutex);
  kernels.push_back(std::move(loaded));
  return static_cast<int64_t>(kernels.size()) - 1;
}

const Kernel& kernel_of(int64_t handle) {
  const std::lock_guard<std::mutex> lock(kernels_mutex);
  const auto loaded = static_cast<int64_t>(kernels.size());
  STD_TORCH_CHECK(0 <= handle && handle < loaded, "handle is ", handle, "; load_cubin has returned ", loaded,
                  " handles in this process, from 0");
  return *kernels[handle];
}

void launch_cubin(int64_t handle, std::vector<Tensor> tensors, std::vector<int64_t> integers,
                  std::vector<double> floats, std::vector<int64_t> grid) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    STD_TORCH_CHECK(tensors[i].is_cuda(), "tensors[", i, "] is on ", device_text(tensors[i]),
                    "; the kernel runs on a CUDA device, and its tensors must be there");
  }
  STD_TORCH_CHECK(grid.size() == 3, "grid has ", grid.size(), " entries, must have 3: blocks in x, y and z");
  for (size_t i = 0; i < grid.size(); ++i) {
    STD_TORCH_CHECK(1 <= grid[i] && grid[i] <= kGridLimits[i], "grid[", i, "] is ", grid[i], ", must be in [1, ",
                    kGridLimits[i], "]");
  }
  STD_TORCH_CHECK(!aoti_torch_grad_mode_is_enabled(),
                  "launch_cubin: no autograd graph is recorded and grad mode is on; call it under no_grad");
  const Kernel& kernel = kernel_of(handle);
  Values values{{}, std::move(integers), std::move(floats)};
  for (size_t i = 0; i < tensors.size(); ++i) {
    STD_TORCH_CHECK(tensors[i].get_device_index() == kernel.device, "tensors[", i, "] is on ",
                    device_text(tensors[i]), ", the kernel was loaded on cuda:", kernel.device);
    values.tensors.push_back(
        {reinterpret_cast<uint64_t>(tensors[i].data_ptr()), element_text(tensors[i].scalar_type())});
  }
  Packed packed = pack(kernel.parameters, values);
  STD_TORCH_CHECK(packed.reason.empty(), "launch_cubin: ", packed.reason);
  std::vector<void*> arguments;
  for (uint64_t& word : packed.words) arguments.push_back(&word);
  const InContext in_context(kernel.context);
  const auto blocks = [&](int i) { return static_cast<unsigned>(grid[i]); };
  driver().check(driver().launch(kernel.function, blocks(0), blocks(1), blocks(2), kernel.threads, 1, 1,
                                 kernel.shared_bytes, current_stream_handle(kernel.device), arguments.data(), nullptr),
                 "cuLaunchKernel");
}

}  // namespace esper::cuda

// For every backend: a tensor on the wrong one is refused by name, where the dispatcher would list its keys.
STABLE_TORCH_LIBRARY_IMPL(esper_native, CompositeExplicitAutograd, m) {
  m.impl("load_cubin", TORCH_BOX(&esper::cuda::load_cubin));
  m.impl("launch_cubin", TORCH_BOX(&esper::cuda::launch_cubin));
}
