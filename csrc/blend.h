// What blend's CPU and CUDA implementations share: its arguments, checked and folded to columns. The definition of
// the op is `blend_reference` in esper/ops/blend.py.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "gates.h"
#include "layout.h"

namespace esper {

using Tensors = std::vector<Tensor>;

// The tensor that has all channels and decides layout, dtype and device: host in the forward, grad in the backward.
struct Leader {
  Name name;
  const Tensor& tensor;
  int64_t channel_dim;
  Order order;

  int64_t channels() const { return tensor.size(channel_dim); }
};

struct Folded {
  Matrix at;
  std::vector<Span> spans;  // columns, one per slot
};

// `spans` is start and stop of slot 0, start and stop of slot 1, ... in channels.
inline void check_spans(const std::vector<int64_t>& spans, int64_t channels, bool convex) {
  STD_TORCH_CHECK(!spans.empty() && spans.size() % 2 == 0, "spans has ", spans.size(),
                  " entries; it must have a start and a stop for each slot, and at least one slot");
  for (size_t s = 0; s < spans.size(); s += 2) {
    STD_TORCH_CHECK(0 <= spans[s] && spans[s] <= spans[s + 1] && spans[s + 1] <= channels, "spans: slot ", s / 2,
                    " covers channels [", spans[s], ", ", spans[s + 1], "), not inside [0, ", channels, ")");
    for (size_t r = 0; convex && r < s; r += 2) {
      STD_TORCH_CHECK(std::max(spans[r], spans[s]) >= std::min(spans[r + 1], spans[s + 1]), "spans: slots ", r / 2,
                      " and ", s / 2, " overlap; the convex form has one slot per channel");
    }
  }
}

inline void check_alphas(const Tensor& alphas, const Leader& leader, int64_t slots) {
  check_type({"alphas"}, alphas, math_type(leader.tensor.scalar_type()), "the type the op computes in");
  check_device({"alphas"}, alphas, leader.name, leader.tensor);
  STD_TORCH_CHECK(alphas.dim() == 1 && alphas.size(0) == slots && alphas.is_contiguous(), "alphas is ",
                  shape_text(alphas), ", must be a contiguous [", slots, "], one per slot");
}

inline Leader check_leader(const char* op, Name name, const Tensor& tensor, int64_t channel_dim) {
  check_no_grad(op);
  check_floating(name, tensor);
  STD_TORCH_CHECK(0 <= channel_dim && channel_dim < tensor.dim(), "channel_dim is ", channel_dim, ", not inside [0, ",
                  tensor.dim(), ")");
  Leader leader{name, tensor, channel_dim, memory_order(tensor)};
  check_dense(name, tensor, leader.order);
  return leader;
}

// `t` must be the leader but for having `channels` channels.
inline void check_like(Name name, const Tensor& t, const Leader& leader, int64_t channels) {
  const auto sizes = leader.tensor.sizes();
  bool same = t.dim() == leader.tensor.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == (d == leader.channel_dim ? channels : sizes[d]);
  STD_TORCH_CHECK(same, name.text(), " is ", shape_text(t), ", ", leader.name.text(), " is ",
                  shape_text(leader.tensor), "; they must be equal but for dimension ", leader.channel_dim,
                  ", which must be ", channels);
  check_device(name, t, leader.name, leader.tensor);
  check_type(name, t, leader.tensor.scalar_type(), "like the tensors beside it");
  check_dense(name, t, leader.order);
}

inline void check_seeds(const Tensors& seeds, const Leader& leader, const std::vector<int64_t>& spans) {
  STD_TORCH_CHECK(2 * seeds.size() == spans.size(), "seeds has ", seeds.size(), " entries, spans ", spans.size(),
                  "; spans must have a start and a stop for each seed");
  for (size_t s = 0; s < seeds.size(); ++s) {
    check_like({"seeds", static_cast<int64_t>(s)}, seeds[s], leader, spans[2 * s + 1] - spans[2 * s]);
  }
}

inline Folded fold_blend(const Leader& leader, const std::vector<int64_t>& spans) {
  Folded f{fold(leader.tensor, leader.order, leader.channel_dim), {}};
  for (size_t s = 0; s < spans.size(); s += 2) f.spans.push_back({spans[s] * f.at.unit, spans[s + 1] * f.at.unit});
  if (f.spans.size() == 1 && f.spans[0].begin == 0 && f.spans[0].end == f.at.width) {
    f.at = {1, f.at.rows * f.at.width, f.at.unit};  // one long row
    f.spans[0].end = f.at.width;
  }
  return f;
}

// An uninitialised tensor of the leader's layout with `channels` channels. Through the dispatcher, so that torch's
// filling of uninitialised memory, which the tests turn on, reaches it.
inline Tensor empty_chunk(const Leader& leader, int64_t channels) {
  if (channels == leader.channels()) return torch::stable::empty_like(leader.tensor);
  std::vector<int64_t> sizes(leader.order.size()), strides(leader.order.size());
  int64_t step = 1;
  for (auto d = leader.order.rbegin(); d != leader.order.rend(); ++d) {
    sizes[*d] = *d == leader.channel_dim ? channels : leader.tensor.size(*d);
    strides[*d] = step;
    step *= std::max<int64_t>(sizes[*d], 1);
  }
  using torch::stable::detail::from;
  const StableIValue none = from(std::nullopt);  // dtype, layout, device, pin_memory: the leader's
  std::array<StableIValue, 7> stack{from(leader.tensor), from(sizes), from(strides), none, none, none, none};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Checks, makes the result and has `run(folded, out)` fill it.
template <typename Run>
Tensor checked_blend(const Tensor& host, const Tensors& seeds, const Tensor& alphas, const std::vector<int64_t>& spans,
                     int64_t channel_dim, bool convex, const Run& run) {
  const Leader leader = check_leader("blend", {"host"}, host, channel_dim);
  check_spans(spans, leader.channels(), convex);
  check_alphas(alphas, leader, static_cast<int64_t>(spans.size() / 2));
  check_seeds(seeds, leader, spans);
  Tensor out = empty_chunk(leader, leader.channels());
  if (host.numel() > 0) run(fold_blend(leader, spans), out);
  return out;
}

// The same in place: `run(leader)` writes to host, over the slots that take part.
template <typename Run>
void checked_blend_in_place(const Tensor& host, const Tensors& seeds, const Tensor& alphas, const Tensor& states,
                            int64_t active, const std::vector<int64_t>& spans, int64_t channel_dim, bool convex,
                            const Run& run) {
  const Leader leader = check_leader("blend_", {"host"}, host, channel_dim);
  check_spans(spans, leader.channels(), convex);
  check_alphas(alphas, leader, static_cast<int64_t>(spans.size() / 2));
  check_seeds(seeds, leader, spans);
  check_mask({"active"}, active);
  check_type({"states"}, states, ScalarType::Byte, "numbers of states");
  check_device({"states"}, states, leader.name, host);
  STD_TORCH_CHECK(states.dim() == 1 && states.numel() == alphas.numel() && states.is_contiguous(), "states is ",
                  shape_text(states), ", must be a contiguous [", alphas.numel(), "], one per slot");
  for (size_t s = 0; s < seeds.size(); ++s) {
    check_apart({"host"}, host, {"seeds", static_cast<int64_t>(s)}, seeds[s]);
  }
  check_apart({"host"}, host, {"alphas"}, alphas);
  check_apart({"host"}, host, {"states"}, states);
  if (host.numel() > 0) run(leader);
}

struct Gradients {
  std::optional<Tensor> host;  // convex only: the residual form's d_host is grad itself
  Tensors seeds;
  std::optional<Tensor> alphas;  // where seeds were given
};

// The same for the backward: `run(folded, gradients)`. Returns [d_host, if convex], one d_seed per slot,
// [d_alphas, if seeds were given].
template <typename Run>
Tensors checked_backward(const Tensor& grad, const std::optional<Tensor>& host, const Tensors& seeds,
                         const Tensor& alphas, const std::vector<int64_t>& spans, int64_t channel_dim, bool convex,
                         const Run& run) {
  const Leader leader = check_leader("blend_backward", {"grad"}, grad, channel_dim);
  check_spans(spans, leader.channels(), convex);
  check_alphas(alphas, leader, static_cast<int64_t>(spans.size() / 2));
  STD_TORCH_CHECK(host.has_value() == (convex && !seeds.empty()),
                  "host must be given exactly where it is read: when convex is true and seeds are given");
  if (host) check_like({"host"}, *host, leader, leader.channels());
  if (!seeds.empty()) check_seeds(seeds, leader, spans);
  Gradients d;
  if (convex) d.host = empty_chunk(leader, leader.channels());
  for (size_t s = 0; s < spans.size(); s += 2) d.seeds.push_back(empty_chunk(leader, spans[s + 1] - spans[s]));
  if (!seeds.empty()) d.alphas = torch::stable::empty_like(alphas);
  run(fold_blend(leader, spans), d);
  Tensors all(d.seeds);
  if (d.host) all.insert(all.begin(), *d.host);
  if (d.alphas) all.push_back(*d.alphas);
  return all;
}

}  // namespace esper
