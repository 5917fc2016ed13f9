// The element types of the CPU ops, and one copy of a loop per instruction set.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <type_traits>

#include "../checks.h"
#include "half.h"

// One copy of a loop per instruction set, chosen when the library is loaded; no -march.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define ESPER_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ESPER_CLONES
#endif

namespace esper::cpu {

template <typename T>
using math_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls `run` with a zero of the C++ type of `type`.
template <typename Run>
void with_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::Half: return run(Half{});
    default: return run(torch::headeronly::BFloat16{});  // the checks let nothing else through
  }
}

}  // namespace esper::cpu
