// blend on CPU. Definition: blend_reference in esper/ops/blend.py.
//
// Work is cut into tiles of about kTile elements whatever the number of threads, and sums are added tile by tile in
// order, so results do not depend on it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <utility>

#include "../blend.h"
#include "half.h"
#include "tiles.h"
#include "types.h"

namespace esper::cpu {

constexpr int64_t kLanes = 32;     // partial sums per tile: two AVX-512 registers of float
constexpr int64_t kColumns = 512;  // rows that are staged, for fp16 or several slots, stay in L1

// `rows` x `cols` elements; a row of the wide tensors (host, out, grad) is `wide` elements, one of the seed `narrow`.
struct Block {
  int64_t rows, cols, wide, narrow;
};

template <typename T>
struct Term {
  const T* seed;
  int64_t narrow;
  math_t<T> alpha;
};

// Residual: host + alpha * seed. Convex: from the nearer end, so that alpha 0 and 1 give host and seed exactly.
template <bool kConvex, typename T>
ESPER_CLONES void add_one(Block b, const T* __restrict host, const T* __restrict seed, math_t<T> alpha,
                          T* __restrict out) {
  using M = math_t<T>;
  const bool near_seed = kConvex && !(alpha < M(0.5));
  const M step = near_seed ? alpha - 1 : alpha;
  for (int64_t r = 0; r < b.rows; ++r, host += b.wide, out += b.wide, seed += b.narrow) {
    for (int64_t c = 0; c < b.cols; ++c) {
      const M h = static_cast<M>(host[c]), g = static_cast<M>(seed[c]);
      out[c] = static_cast<T>((near_seed ? g : h) + step * (kConvex ? g - h : g));
    }
  }
}

template <bool kConvex>
void add_one(Block b, const Half* host, const Half* seed, float alpha, Half* out) {
  for (int64_t r = 0; r < b.rows; ++r, host += b.wide, out += b.wide, seed += b.narrow) {
    add_row<kConvex>(host, seed, alpha, out, b.cols);
  }
}

template <typename T>
ESPER_CLONES void add_many(Block b, const T* __restrict host, const Term<T>* terms, size_t count, T* __restrict out) {
  using M = math_t<T>;
  M sum[kColumns];
  for (int64_t r = 0; r < b.rows; ++r, host += b.wide, out += b.wide) {
    for (int64_t first = 0; first < b.cols; first += kColumns) {
      const int64_t n = std::min(kColumns, b.cols - first);
      for (int64_t c = 0; c < n; ++c) sum[c] = static_cast<M>(host[first + c]);
      for (const Term<T>* t = terms; t != terms + count; ++t) {
        const T* __restrict seed = t->seed + r * t->narrow + first;
        for (int64_t c = 0; c < n; ++c) sum[c] += t->alpha * static_cast<M>(seed[c]);
      }
      for (int64_t c = 0; c < n; ++c) out[first + c] = static_cast<T>(sum[c]);
    }
  }
}

// The same two with the result in place of the host.
template <bool kConvex, typename T>
ESPER_CLONES void add_one_in_place(Block b, T* __restrict host, const T* __restrict seed, math_t<T> alpha) {
  using M = math_t<T>;
  const bool near_seed = kConvex && !(alpha < M(0.5));
  const M step = near_seed ? alpha - 1 : alpha;
  for (int64_t r = 0; r < b.rows; ++r, host += b.wide, seed += b.narrow) {
    for (int64_t c = 0; c < b.cols; ++c) {
      const M h = static_cast<M>(host[c]), g = static_cast<M>(seed[c]);
      host[c] = static_cast<T>((near_seed ? g : h) + step * (kConvex ? g - h : g));
    }
  }
}

template <bool kConvex>
void add_one_in_place(Block b, Half* host, const Half* seed, float alpha) {
  add_one<kConvex>(b, host, seed, alpha, host);  // eight at a time: read, then written
}

template <typename T>
ESPER_CLONES void add_many_in_place(Block b, T* __restrict host, const Term<T>* terms, size_t count) {
  using M = math_t<T>;
  M sum[kColumns];
  for (int64_t r = 0; r < b.rows; ++r, host += b.wide) {
    for (int64_t first = 0; first < b.cols; first += kColumns) {
      const int64_t n = std::min(kColumns, b.cols - first);
      for (int64_t c = 0; c < n; ++c) sum[c] = static_cast<M>(host[first + c]);
      for (const Term<T>* t = terms; t != terms + count; ++t) {
        const T* __restrict seed = t->seed + r * t->narrow + first;
        for (int64_t c = 0; c < n; ++c) sum[c] += t->alpha * static_cast<M>(seed[c]);
      }
      for (int64_t c = 0; c < n; ++c) host[first + c] = static_cast<T>(sum[c]);
    }
  }
}

// d_seed = alpha * grad; convex: d_host = (1 - alpha) * grad; and into lanes, where asked, grad * d(out)/d(alpha).
template <bool kConvex, bool kAlpha, typename T>
ESPER_CLONES void back_one(Block b, const T* __restrict grad, const T* __restrict host, const T* __restrict seed,
                           math_t<T> alpha, T* __restrict d_host, T* __restrict d_seed, math_t<T>* __restrict lanes) {
  using M = math_t<T>;
  M sum[kLanes] = {};
  const auto one = [&](int64_t c, M& lane) __attribute__((always_inline)) {
    const M up = static_cast<M>(grad[c]);
    d_seed[c] = static_cast<T>(alpha * up);
    if constexpr (kConvex) d_host[c] = static_cast<T>(up - alpha * up);
    if constexpr (kAlpha && kConvex) lane += up * (static_cast<M>(seed[c]) - static_cast<M>(host[c]));
    if constexpr (kAlpha && !kConvex) lane += up * static_cast<M>(seed[c]);
  };
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t whole = b.cols - b.cols % kLanes;
    for (int64_t c = 0; c < whole; c += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) one(c + j, sum[j]);
    }
    for (int64_t c = whole; c < b.cols; ++c) one(c, sum[c - whole]);
    grad += b.wide, d_seed += b.narrow;
    if constexpr (kConvex) d_host += b.wide;
    if constexpr (kAlpha) seed += b.narrow;
    if constexpr (kAlpha && kConvex) host += b.wide;
  }
  for (int64_t j = 0; kAlpha && j < kLanes; ++j) lanes[j] += sum[j];
}

template <bool kConvex, bool kAlpha>
void back_one(Block b, const Half* grad, const Half* host, const Half* seed, float alpha, Half* d_host, Half* d_seed,
              float* lanes) {
  float up[kColumns], h[kColumns], g[kColumns], dh[kColumns], dg[kColumns];
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t wide = r * b.wide, thin = r * b.narrow;
    for (int64_t first = 0; first < b.cols; first += kColumns) {
      const int64_t n = std::min(kColumns, b.cols - first);
      widen(grad + wide + first, up, n);
      if constexpr (kAlpha) widen(seed + thin + first, g, n);
      if constexpr (kAlpha && kConvex) widen(host + wide + first, h, n);
      back_one<kConvex, kAlpha, float>({1, n, n, n}, up, h, g, alpha, dh, dg, lanes);
      narrow(dg, d_seed + thin + first, n);
      if constexpr (kConvex) narrow(dh, d_host + wide + first, n);
    }
  }
}

inline Span cut(Span a, Span b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// The columns between two neighbouring span ends, and the slots that cover them.
struct Segment {
  Span cols;
  std::vector<size_t> slots;
};

std::vector<Segment> segments_of(const Folded& f) {
  std::vector<int64_t> ends{0, f.at.width};
  for (const Span& s : f.spans) ends.insert(ends.end(), {s.begin, s.end});
  std::sort(ends.begin(), ends.end());
  std::vector<Segment> segments;
  for (size_t e = 0; e + 1 < ends.size(); ++e) {
    if (ends[e] == ends[e + 1]) continue;
    Segment made{{ends[e], ends[e + 1]}, {}};
    for (size_t s = 0; s < f.spans.size(); ++s) {
      if (f.spans[s].begin <= ends[e] && ends[e + 1] <= f.spans[s].end) made.slots.push_back(s);
    }
    segments.push_back(std::move(made));
  }
  return segments;
}

template <typename T>
void copy_block(const Block& b, const T* from, T* to) {
  for (int64_t r = 0; r < b.rows; ++r) std::memcpy(to + r * b.wide, from + r * b.wide, b.cols * sizeof(T));
}

template <typename T>
std::vector<const T*> pointers(const Tensors& tensors) {
  std::vector<const T*> made;
  for (const Tensor& t : tensors) made.push_back(static_cast<const T*>(t.const_data_ptr()));
  return made;
}

template <typename T>
struct Forward {
  const Folded& f;
  const T* host;
  std::vector<const T*> seeds;
  const math_t<T>* alphas;
  bool convex;
  T* out;

  Term<T> term(size_t slot, int64_t row, int64_t col) const {
    const Span span = f.spans[slot];
    const int64_t narrow = span.end - span.begin;
    return {seeds[slot] + row * narrow + (col - span.begin), narrow, alphas[slot]};
  }

  void operator()(const Tile& tile, const Segment& segment) const {
    const Span cols = cut(tile.cols, segment.cols);
    if (cols.begin >= cols.end) return;
    const int64_t at = tile.row * f.at.width + cols.begin;
    Block b{tile.rows, cols.end - cols.begin, f.at.width, 0};
    if (segment.slots.empty()) return copy_block(b, host + at, out + at);
    if (segment.slots.size() == 1) {
      const Term<T> only = term(segment.slots[0], tile.row, cols.begin);
      b.narrow = only.narrow;
      return convex ? add_one<true>(b, host + at, only.seed, only.alpha, out + at)
                    : add_one<false>(b, host + at, only.seed, only.alpha, out + at);
    }
    std::vector<Term<T>> terms;
    for (size_t slot : segment.slots) terms.push_back(term(slot, tile.row, cols.begin));
    add_many<T>(b, host + at, terms.data(), terms.size(), out + at);
  }
};

template <typename T>
struct InPlace {
  const Folded& f;  // of the slots that take part, and no others
  T* host;
  std::vector<Term<T>> terms;  // from their first element on
  bool convex;

  void operator()(const Tile& tile, const Segment& segment) const {
    const Span cols = cut(tile.cols, segment.cols);
    if (cols.begin >= cols.end || segment.slots.empty()) return;
    std::vector<Term<T>> here;
    for (size_t slot : segment.slots) {
      here.push_back(terms[slot]);
      here.back().seed += tile.row * here.back().narrow + (cols.begin - f.spans[slot].begin);
    }
    T* at = host + tile.row * f.at.width + cols.begin;
    const Block b{tile.rows, cols.end - cols.begin, f.at.width, here[0].narrow};
    if (here.size() > 1) return add_many_in_place<T>(b, at, here.data(), here.size());
    convex ? add_one_in_place<true>(b, at, here[0].seed, here[0].alpha)
           : add_one_in_place<false>(b, at, here[0].seed, here[0].alpha);
  }

};

template <typename T>
struct Backward {
  const Folded& f;
  const T* grad;
  const T* host;                // null unless convex and alphas are asked for
  std::vector<const T*> seeds;  // empty unless alphas are asked for
  const math_t<T>* alphas;
  bool convex;
  T* d_host;  // null unless convex
  std::vector<T*> d_seeds;

  // Writes the slot's gradients over the tile; returns its share of d_alpha.
  double operator()(const Tile& tile, size_t slot) const {
    const Span span = f.spans[slot], cols = cut(tile.cols, span);
    if (cols.begin >= cols.end) return 0;
    const int64_t narrow = span.end - span.begin;
    const int64_t at = tile.row * f.at.width + cols.begin, at_seed = tile.row * narrow + (cols.begin - span.begin);
    math_t<T> lanes[kLanes] = {};
    const auto run = [&](auto is_convex, auto has_seeds) {
      constexpr bool kConvex = decltype(is_convex)::value, kAlpha = decltype(has_seeds)::value;
      back_one<kConvex, kAlpha>({tile.rows, cols.end - cols.begin, f.at.width, narrow}, grad + at,
                                kConvex && kAlpha ? host + at : nullptr, kAlpha ? seeds[slot] + at_seed : nullptr,
                                alphas[slot], kConvex ? d_host + at : nullptr, d_seeds[slot] + at_seed, lanes);
    };
    const bool sums = !seeds.empty();
    if (convex) sums ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
    else sums ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
    double total = 0;
    for (math_t<T> lane : lanes) total += lane;
    return total;
  }

  // Columns no slot covers: the host's gradient is the output's.
  void pass_through(const Tile& tile, const Segment& segment) const {
    const Span cols = cut(tile.cols, segment.cols);
    if (!segment.slots.empty() || cols.begin >= cols.end) return;
    const int64_t at = tile.row * f.at.width + cols.begin;
    copy_block({tile.rows, cols.end - cols.begin, f.at.width, 0}, grad + at, d_host + at);
  }
};

template <typename T>
void run_forward(const Folded& f, const Tensor& host, const Tensors& seeds, const Tensor& alphas, bool convex,
                 const Tensor& out) {
  const Forward<T> forward{f,
                           static_cast<const T*>(host.const_data_ptr()),
                           pointers<T>(seeds),
                           static_cast<const math_t<T>*>(alphas.const_data_ptr()),
                           convex,
                           static_cast<T*>(out.mutable_data_ptr())};
  const Tiles tiles(f.at);
  const std::vector<Segment> segments = segments_of(f);
  torch::stable::parallel_for(0, tiles.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (const Segment& segment : segments) forward(tiles[i], segment);
    }
  });
}

template <typename T>
void run_in_place(const InPlace<T>& in_place) {
  const Tiles tiles(in_place.f.at);
  const std::vector<Segment> segments = segments_of(in_place.f);
  torch::stable::parallel_for(0, tiles.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (const Segment& segment : segments) in_place(tiles[i], segment);
    }
  });
}

template <typename T>
void run_backward(const Folded& f, const Tensor& grad, const std::optional<Tensor>& host, const Tensors& seeds,
                  const Tensor& alphas, bool convex, const Gradients& d) {
  Backward<T> backward{f,
                       static_cast<const T*>(grad.const_data_ptr()),
                       host ? static_cast<const T*>(host->const_data_ptr()) : nullptr,
                       pointers<T>(seeds),
                       static_cast<const math_t<T>*>(alphas.const_data_ptr()),
                       convex,
                       d.host ? static_cast<T*>(d.host->mutable_data_ptr()) : nullptr,
                       {}};
  for (const Tensor& t : d.seeds) backward.d_seeds.push_back(static_cast<T*>(t.mutable_data_ptr()));
  const Tiles tiles(f.at);
  const std::vector<Segment> segments = convex ? segments_of(f) : std::vector<Segment>{};
  const size_t slots = f.spans.size();
  std::vector<double> shares(tiles.count * slots);
  torch::stable::parallel_for(0, tiles.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (size_t s = 0; s < slots; ++s) shares[i * slots + s] = backward(tiles[i], s);
      for (const Segment& segment : segments) backward.pass_through(tiles[i], segment);
    }
  });
  if (!d.alphas) return;
  auto* totals = static_cast<math_t<T>*>(d.alphas->mutable_data_ptr());
  for (size_t s = 0; s < slots; ++s) {
    double total = 0;
    for (int64_t i = 0; i < tiles.count; ++i) total += shares[i * slots + s];
    totals[s] = static_cast<math_t<T>>(total);
  }
}

Tensor blend(const Tensor& host, Tensors seeds, const Tensor& alphas, std::vector<int64_t> spans, int64_t channel_dim,
             bool convex) {
  return checked_blend(host, seeds, alphas, spans, channel_dim, convex, [&](const Folded& f, const Tensor& out) {
    with_type(host.scalar_type(),
              [&](auto zero) { run_forward<decltype(zero)>(f, host, seeds, alphas, convex, out); });
  });
}

// States are in host memory, so a slot that takes no part is left out before anything is cut into tiles.
void blend_in_place(const Tensor& host, Tensors seeds, const Tensor& alphas, const Tensor& states, int64_t active,
                    std::vector<int64_t> spans, int64_t channel_dim, bool convex) {
  const auto run = [&](const Leader& leader) {
    const auto* state = static_cast<const uint8_t*>(states.const_data_ptr());
    std::vector<size_t> slots;
    std::vector<int64_t> bounds;
    for (size_t s = 0; s < seeds.size(); ++s) {
      if (!among(state[s], active)) continue;
      slots.push_back(s);
      bounds.insert(bounds.end(), {spans[2 * s], spans[2 * s + 1]});
    }
    if (slots.empty()) return;
    const Folded f = fold_blend(leader, bounds);
    with_type(host.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      InPlace<T> in_place{f, static_cast<T*>(host.mutable_data_ptr()), {}, convex};
      const auto* factors = static_cast<const math_t<T>*>(alphas.const_data_ptr());
      for (size_t i = 0; i < slots.size(); ++i) {
        const auto* seed = static_cast<const T*>(seeds[slots[i]].const_data_ptr());
        in_place.terms.push_back({seed, f.spans[i].end - f.spans[i].begin, factors[slots[i]]});
      }
      run_in_place(in_place);
    });
  };
  checked_blend_in_place(host, seeds, alphas, states, active, spans, channel_dim, convex, run);
}

Tensors blend_backward(const Tensor& grad, std::optional<Tensor> host, Tensors seeds, const Tensor& alphas,
                       std::vector<int64_t> spans, int64_t channel_dim, bool convex) {
  const auto run = [&](const Folded& f, const Gradients& d) {
    with_type(grad.scalar_type(),
              [&](auto zero) { run_backward<decltype(zero)>(f, grad, host, seeds, alphas, convex, d); });
  };
  return checked_backward(grad, host, seeds, alphas, spans, channel_dim, convex, run);
}

}  // namespace esper::cpu

STABLE_TORCH_LIBRARY_IMPL(esper_native, CPU, m) {
  m.impl("blend", TORCH_BOX(&esper::cpu::blend));
  m.impl("blend_backward", TORCH_BOX(&esper::cpu::blend_backward));
  m.impl("blend_", TORCH_BOX(&esper::cpu::blend_in_place));
}
