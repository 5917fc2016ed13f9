// Argument checks for every op: a message names the argument, what came and the limit. They guard memory, so they
// run whatever the caller checked before. Text is built only once a check has failed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

namespace esper {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument's name, or one entry's of a list argument.
struct Name {
  const char* argument;
  int64_t index = -1;

  std::string text() const { return argument + (index < 0 ? "" : "[" + std::to_string(index) + "]"); }
};

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.device().type() == torch::headeronly::DeviceType::Meta) return "meta";
  return (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

// The type sums are taken in: float, or double for double.
inline ScalarType math_type(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

// The stable ABI cannot carry an autograd node: under grad mode a result would silently have no history.
inline void check_no_grad(const char* op) {
  STD_TORCH_CHECK(!aoti_torch_grad_mode_is_enabled(), op,
                  ": this library records no autograd graph and grad mode is on; call it under no_grad (NoGradGuard "
                  "in C++) and take gradients from blend_backward, or call esper.ops.blend from Python");
}

inline void check_floating(Name name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  name.text(), " has dtype ", toString(type), "; supported: Float, Double, Half, BFloat16");
}

inline void check_type(Name name, const Tensor& t, ScalarType want, const char* why) {
  STD_TORCH_CHECK(t.scalar_type() == want, name.text(), " has dtype ", toString(t.scalar_type()), ", must be ",
                  toString(want), ", ", why);
}

inline void check_device(Name name, const Tensor& t, Name leader_name, const Tensor& leader) {
  STD_TORCH_CHECK(t.device() == leader.device(), name.text(), " is on ", device_text(t), ", ", leader_name.text(),
                  " on ", device_text(leader), "; all tensors must be on one device");
}

// `written` must not share memory with `other`; both dense.
inline void check_apart(Name written_name, const Tensor& written, Name name, const Tensor& other) {
  const auto begin = reinterpret_cast<uintptr_t>(written.const_data_ptr());
  const auto from = reinterpret_cast<uintptr_t>(other.const_data_ptr());
  const auto end = begin + written.numel() * written.element_size(), to = from + other.numel() * other.element_size();
  STD_TORCH_CHECK(begin == end || from == to || end <= from || to <= begin, written_name.text(),
                  " shares memory with ", name.text(), "; what is written needs memory of its own");
}

}  // namespace esper
