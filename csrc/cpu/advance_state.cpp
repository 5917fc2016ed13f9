// advance_state on CPU. Definition: advance_state_reference in esper/ops/advance_state.py.
#include <torch/csrc/stable/library.h>

#include "../advance_state.h"

namespace esper::cpu {

// One thread: a table of a thousand seeds is 37 KB.
void advance_state(const Tensor& alphas, const Tensor& ages, const Tensor& step, const Tensor& states,
                   const Tensor& ramp_begins, const Tensor& ramp_steps, int64_t ramping, int64_t counting) {
  const State t = checked_state(alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting);
  const int64_t now = ++*t.step;
  for (int64_t s = 0; s < t.seeds; ++s) advance_seed(t, s, now);
}

}  // namespace esper::cpu

STABLE_TORCH_LIBRARY_IMPL(esper_native, CPU, m) { m.impl("advance_state", TORCH_BOX(&esper::cpu::advance_state)); }
