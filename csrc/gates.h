// Bit masks over the numbers of lifecycle states: bit n stands for state n, 0 to 62. See esper/ops/gates.py.
#pragma once

#include "checks.h"

#ifdef __CUDACC__
#define ESPER_EVERYWHERE __host__ __device__
#else
#define ESPER_EVERYWHERE
#endif

namespace esper {

constexpr int kStates = 63;

// Whether the mask has a bit for `state`.
ESPER_EVERYWHERE inline bool among(uint8_t state, int64_t mask) {
  return state < kStates && ((mask >> state) & 1) != 0;
}

inline void check_mask(Name name, int64_t mask) {
  STD_TORCH_CHECK(mask >= 0, name.text(), " is ", mask, "; a mask has a bit for each of the states 0 to ", kStates - 1,
                  " and is not negative");
}

}  // namespace esper
