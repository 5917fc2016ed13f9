// What advance_state's CPU and CUDA implementations share: its arguments, checked, and the step of one seed. The
// definition of the op is `advance_state_reference` in esper/ops/advance_state.py.
#pragma once

#include "gates.h"

namespace esper {

// The columns of a seed table, and the masks of the states that ramp and that count.
struct State {
  float* alphas;
  int64_t* ages;
  int64_t* step;
  const uint8_t* states;
  const int64_t* ramp_begins;
  const int64_t* ramp_steps;
  int64_t seeds, ramping, counting;
};

// Seed s at `step`. In double and rounded once: equal to the host's own formula while steps are below 2^53.
ESPER_EVERYWHERE inline void advance_seed(const State& t, int64_t s, int64_t step) {
  const uint8_t state = t.states[s];
  const int64_t length = t.ramp_steps[s];
  if (among(state, t.ramping) && length >= 0) {
    const double begin = static_cast<double>(t.ramp_begins[s]);
    double share = length == 0 ? 1.0 : (static_cast<double>(step) - begin) / static_cast<double>(length);
    share = share > 1.0 ? 1.0 : share;
    t.alphas[s] = static_cast<float>(share > 0.0 ? share : 0.0);
  }
  if (among(state, t.counting)) t.ages[s] += 1;
}

struct Column {
  Name name;
  const Tensor& tensor;
  ScalarType type;
};

inline State checked_state(const Tensor& alphas, const Tensor& ages, const Tensor& step, const Tensor& states,
                           const Tensor& ramp_begins, const Tensor& ramp_steps, int64_t ramping, int64_t counting) {
  check_mask({"ramping"}, ramping);
  check_mask({"counting"}, counting);
  STD_TORCH_CHECK(alphas.dim() == 1, "alphas is ", shape_text(alphas), ", must be [S], one per seed");
  const int64_t seeds = alphas.size(0);
  const Column columns[] = {
      {{"alphas"}, alphas, ScalarType::Float},           {{"ages"}, ages, ScalarType::Long},
      {{"step"}, step, ScalarType::Long},                {{"states"}, states, ScalarType::Byte},
      {{"ramp_begins"}, ramp_begins, ScalarType::Long},  {{"ramp_steps"}, ramp_steps, ScalarType::Long},
  };
  for (const Column& c : columns) {
    const int64_t wanted = &c.tensor == &step ? 1 : seeds;
    check_type(c.name, c.tensor, c.type, "the type of its column");
    check_device(c.name, c.tensor, {"alphas"}, alphas);
    STD_TORCH_CHECK(c.tensor.dim() == 1 && c.tensor.size(0) == wanted && c.tensor.is_contiguous(), c.name.text(),
                    " is ", shape_text(c.tensor), ", must be a contiguous [", wanted, "]");
  }
  for (int written = 0; written < 3; ++written) {
    for (int other = 0; other < 6; ++other) {
      if (other == written) continue;
      check_apart(columns[written].name, columns[written].tensor, columns[other].name, columns[other].tensor);
    }
  }
  return {static_cast<float*>(alphas.mutable_data_ptr()),
          static_cast<int64_t*>(ages.mutable_data_ptr()),
          static_cast<int64_t*>(step.mutable_data_ptr()),
          static_cast<const uint8_t*>(states.const_data_ptr()),
          static_cast<const int64_t*>(ramp_begins.const_data_ptr()),
          static_cast<const int64_t*>(ramp_steps.const_data_ptr()),
          seeds,
          ramping,
          counting};
}

}  // namespace esper
