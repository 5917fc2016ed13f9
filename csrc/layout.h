// How an op sees a dense tensor: rows x width in memory order, one channel being `unit` neighbouring columns.
//
//   contiguous [B, C, H, W], channel_dim 1      rows = B, width = C*H*W, unit = H*W
//   channels-last [B, C, H, W], channel_dim 1   rows = B*H*W, width = C, unit = 1
//   contiguous [B, T, C], channel_dim 2         rows = B*T, width = C, unit = 1
//
// So channels [start, stop) are columns [start*unit, stop*unit), and nothing is copied for a layout.
#pragma once

#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <vector>

#include "checks.h"

namespace esper {

using Order = std::vector<int64_t>;  // dimensions from the slowest in memory to the fastest

struct Matrix {
  int64_t rows, width, unit;
};

struct Span {
  int64_t begin, end;  // columns
};

// Ties stay in the tensor's own order.
inline Order memory_order(const Tensor& t) {
  const auto strides = t.strides();
  Order order;
  order.reserve(strides.size());
  for (int64_t d = 0; d < static_cast<int64_t>(strides.size()); ++d) {
    auto after = order.end();
    while (after != order.begin() && strides[*(after - 1)] < strides[d]) --after;
    order.insert(after, d);
  }
  return order;
}

// Dimensions of one element have no position in memory, so their strides are not read.
inline void check_dense(Name name, const Tensor& t, const Order& order) {
  if (t.numel() == 0) return;
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    STD_TORCH_CHECK(sizes[*d] == 1 || strides[*d] == expected, name.text(), " ", shape_text(t), " has stride ",
                    strides[*d], " in dimension ", *d, " where a dense tensor of the op's layout has ", expected,
                    "; pass .contiguous() tensors, or all channels-last");
    expected *= sizes[*d];
  }
}

inline Matrix fold(const Tensor& t, const Order& order, int64_t channel_dim) {
  Matrix m{1, 1, 1};
  const auto sizes = t.sizes();
  bool inside = false;
  for (int64_t d : order) {
    inside |= d == channel_dim;
    (inside ? m.width : m.rows) *= sizes[d];
  }
  m.unit = sizes[channel_dim] ? m.width / sizes[channel_dim] : 1;
  return m;
}

}  // namespace esper
