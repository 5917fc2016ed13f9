// What the ops say of a tensor that no code of this library reads: one on another device, or not strided. torch's own
// refusal ("Could not run ... from the 'Meta' backend") names no argument.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "checks.h"

namespace esper::elsewhere {

using Tensors = std::vector<Tensor>;

#ifdef ESPER_CUDA_ARCHS
constexpr bool kCuda = true;
constexpr const char* kWhere = "on cpu and cuda";
#else
constexpr bool kCuda = false;
constexpr const char* kWhere = "on cpu (it was built without CUDA)";
#endif

void check(const char* op, Name name, const Tensor& t) {
  STD_TORCH_CHECK(t.defined(), op, ": ", name.text(), " is undefined");
  int32_t layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(t.get(), &layout));
  STD_TORCH_CHECK(layout == aoti_torch_layout_strided(), op, ": ", name.text(),
                  " is sparse or of another layout that is not strided; use .to_dense()");
  STD_TORCH_CHECK(t.is_cpu() || (kCuda && t.is_cuda()), op, ": ", name.text(), " is on ", device_text(t),
                  "; this library has code for tensors ", kWhere,
                  ". Under torch.compile register a fake for the op: docs/embedding.md");
}

void check(const char* op, const char* argument, const Tensors& list) {
  for (size_t i = 0; i < list.size(); ++i) check(op, {argument, static_cast<int64_t>(i)}, list[i]);
}

[[noreturn]] void refuse(const char* op) {
  STD_TORCH_CHECK(false, op, ": a tensor is nested, quantised or otherwise not plain; this library reads plain tensors ",
                  kWhere);
  __builtin_unreachable();
}

Tensor blend(const Tensor& host, Tensors seeds, const Tensor& alphas, std::vector<int64_t>, int64_t, bool) {
  check("blend", {"host"}, host);
  check("blend", "seeds", seeds);
  check("blend", {"alphas"}, alphas);
  refuse("blend");
}

Tensors blend_backward(const Tensor& grad, std::optional<Tensor> host, Tensors seeds, const Tensor& alphas,
                       std::vector<int64_t>, int64_t, bool) {
  check("blend_backward", {"grad"}, grad);
  if (host) check("blend_backward", {"host"}, *host);
  check("blend_backward", "seeds", seeds);
  check("blend_backward", {"alphas"}, alphas);
  refuse("blend_backward");
}

void blend_(const Tensor& host, Tensors seeds, const Tensor& alphas, const Tensor& states, int64_t, std::vector<int64_t>,
            int64_t, bool) {
  check("blend_", {"host"}, host);
  check("blend_", "seeds", seeds);
  check("blend_", {"alphas"}, alphas);
  check("blend_", {"states"}, states);
  refuse("blend_");
}

void advance_state(const Tensor& alphas, const Tensor& ages, const Tensor& step, const Tensor& states,
                   const Tensor& ramp_begins, const Tensor& ramp_steps, int64_t, int64_t) {
  check("advance_state", {"alphas"}, alphas);
  check("advance_state", {"ages"}, ages);
  check("advance_state", {"step"}, step);
  check("advance_state", {"states"}, states);
  check("advance_state", {"ramp_begins"}, ramp_begins);
  check("advance_state", {"ramp_steps"}, ramp_steps);
  refuse("advance_state");
}

void seed_stats(const Tensor& values, std::vector<int64_t>, int64_t, double, const Tensor& stats) {
  check("seed_stats", {"values"}, values);
  check("seed_stats", {"stats"}, stats);
  refuse("seed_stats");
}

}  // namespace esper::elsewhere

// For every device and layout without an implementation of its own.
STABLE_TORCH_LIBRARY_IMPL(esper_native, CompositeExplicitAutograd, m) {
  m.impl("blend", TORCH_BOX(&esper::elsewhere::blend));
  m.impl("blend_backward", TORCH_BOX(&esper::elsewhere::blend_backward));
  m.impl("blend_", TORCH_BOX(&esper::elsewhere::blend_));
  m.impl("advance_state", TORCH_BOX(&esper::elsewhere::advance_state));
  m.impl("seed_stats", TORCH_BOX(&esper::elsewhere::seed_stats));
}
