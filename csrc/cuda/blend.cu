// blend on CUDA. Definition: blend_reference in esper/ops/blend.py.
//
// One launch serves all slots. The grid depends on the shape alone and every thread's share of a sum is added in a
// fixed order, so d_alphas is equal from run to run and from device to device. Nothing here synchronises or
// allocates outside torch, so a CUDA graph can capture it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../blend.h"
#include "launch.cuh"
#include "pack.cuh"

namespace esper::cuda {

constexpr int kSlots = 64;              // slots per launch: their table is a kernel argument, 2 KB of the 4 KB allowed
constexpr int64_t kBlocks = 2048;       // of a launch that sums: more would only lengthen the second pass

// Columns [begin, end) of slot s hold seed[s], dense rows of end - begin elements.
struct Slots {
  int count;
  const void* seed[kSlots];
  void* d_seed[kSlots];
  int64_t begin[kSlots], end[kSlots];

  __device__ int64_t width(int s) const { return end[s] - begin[s]; }
};

template <typename T, int kVec, bool kConvex>
__global__ void __launch_bounds__(kThreads, kResident)
    forward_kernel(const T* __restrict__ host, const __grid_constant__ Slots slots,
                   const math_t<T>* __restrict__ alphas, T* __restrict__ out, int64_t rows, int64_t width) {
  using M = math_t<T>;
  each_pack<kVec>(rows, width, [&](int64_t row, int64_t col) {
    M sum[kVec], seed[kVec];
    load<kVec>(host + row * width + col, width - col, sum);
    for (int s = 0; s < slots.count; ++s) {
      if (col < slots.begin[s] || col >= slots.end[s]) continue;
      const int64_t at = row * slots.width(s) + (col - slots.begin[s]);
      load<kVec>(static_cast<const T*>(slots.seed[s]) + at, slots.end[s] - col, seed);
      const M alpha = alphas[s];
      const bool near_seed = kConvex && !(alpha < M(0.5));  // from the nearer end: exact at alpha 0 and 1
      const M step = near_seed ? alpha - 1 : alpha;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[i] = (near_seed ? seed[i] : sum[i]) + step * (kConvex ? seed[i] - sum[i] : seed[i]);
      }
    }
    store<kVec>(out + row * width + col, width - col, sum);
  });
}

// As `load`, of memory that this kernel writes too: not through the read-only cache.
template <int kVec, typename T>
__device__ void load_own(const T* from, int64_t inside, math_t<T> (&to)[kVec]) {
  Pack<T, kVec> pack;
  if (inside >= kVec) {
    pack.word = __ldcg(reinterpret_cast<const typename Pack<T, kVec>::Word*>(from));
  } else {
#pragma unroll
    for (int i = 0; i < kVec; ++i) pack.at[i] = i < inside ? __ldcg(from + i) : T(0.0f);
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) to[i] = static_cast<math_t<T>>(pack.at[i]);
}

// Columns [first, last) hold every slot. A block none of whose slots takes part returns before it touches them.
template <typename T, int kVec, bool kConvex>
__global__ void __launch_bounds__(kThreads, kResident)
    in_place_kernel(T* host, const __grid_constant__ Slots slots, const math_t<T>* __restrict__ alphas,
                    const uint8_t* __restrict__ states, int64_t active, int64_t rows, int64_t width, int64_t first,
                    int64_t last) {
  using M = math_t<T>;
  __shared__ bool takes[kSlots];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  bool mine = false;
  if (thread < slots.count) takes[thread] = mine = among(states[thread], active);
  if (!__syncthreads_or(mine)) return;
  each_pack<kVec>(rows, last - first, [&](int64_t row, int64_t from_first) {
    const int64_t col = first + from_first;
    T* const at = host + row * width + col;
    M sum[kVec], seed[kVec];
    bool touched = false;
    for (int s = 0; s < slots.count; ++s) {
      if (!takes[s] || col < slots.begin[s] || col >= slots.end[s]) continue;
      if (!touched) load_own<kVec>(at, width - col, sum);
      touched = true;
      const int64_t at_seed = row * slots.width(s) + (col - slots.begin[s]);
      load<kVec>(static_cast<const T*>(slots.seed[s]) + at_seed, slots.end[s] - col, seed);
      const M alpha = alphas[s];
      const bool near_seed = kConvex && !(alpha < M(0.5));
      const M step = near_seed ? alpha - 1 : alpha;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[i] = (near_seed ? seed[i] : sum[i]) + step * (kConvex ? seed[i] - sum[i] : seed[i]);
      }
    }
    if (touched) store<kVec>(at, width - col, sum);
  });
}

// blockIdx.z is the slot; one more z, where asked for, copies the columns no slot covers to d_host.
template <typename T, int kVec, bool kConvex, bool kAlpha>
__global__ void __launch_bounds__(kThreads, kResident)
    backward_kernel(const T* __restrict__ grad, const T* __restrict__ host, const __grid_constant__ Slots slots,
                    const math_t<T>* __restrict__ alphas, T* __restrict__ d_host, math_t<T>* __restrict__ shares,
                    int64_t rows, int64_t width) {
  using M = math_t<T>;
  const int s = blockIdx.z;
  M up[kVec], made[kVec], other[kVec];
  if (kConvex && s == slots.count) {
    each_pack<kVec>(rows, width, [&](int64_t row, int64_t col) {
      for (int r = 0; r < slots.count; ++r) {
        if (slots.begin[r] <= col && col < slots.end[r]) return;
      }
      load<kVec>(grad + row * width + col, width - col, up);
      store<kVec>(d_host + row * width + col, width - col, up);
    });
    return;
  }
  const M alpha = alphas[s];
  M sum = 0;
  const int64_t narrow = slots.width(s);
  each_pack<kVec>(rows, narrow, [&](int64_t row, int64_t col) {
    const int64_t at = row * width + slots.begin[s] + col, at_seed = row * narrow + col, inside = narrow - col;
    load<kVec>(grad + at, inside, up);
#pragma unroll
    for (int i = 0; i < kVec; ++i) made[i] = alpha * up[i];
    store<kVec>(static_cast<T*>(slots.d_seed[s]) + at_seed, inside, made);
    if constexpr (kConvex) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) made[i] = up[i] - made[i];
      store<kVec>(d_host + at, inside, made);
    }
    if constexpr (kAlpha) {
      load<kVec>(static_cast<const T*>(slots.seed[s]) + at_seed, inside, made);
      if constexpr (kConvex) load<kVec>(host + at, inside, other);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum += up[i] * (kConvex ? made[i] - other[i] : made[i]);
    }
  });
  if constexpr (kAlpha) {
    const M total = block_sum(sum);
    const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y;
    if (threadIdx.x == 0 && threadIdx.y == 0) shares[s * blocks + blockIdx.y * gridDim.x + blockIdx.x] = total;
  }
}

// d_alphas[slot] = the sum of its blocks' shares. One block per slot.
template <typename M>
__global__ void __launch_bounds__(kThreads, kResident)
    sum_kernel(const M* __restrict__ shares, int64_t blocks, M* __restrict__ d_alphas) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kThreads) sum += shares[blockIdx.x * blocks + i];
  const double total = block_sum(sum);
  if (threadIdx.x == 0) d_alphas[blockIdx.x] = static_cast<M>(total);
}

struct Shape {
  dim3 grid, block;
};

// A grid for rows x width packs; `most` bounds its blocks, 0 for as many as there is work.
Shape shape_for(int64_t rows, int64_t packs, int64_t slots, int64_t most) {
  int64_t x = 1;
  while (x < packs && x < kThreads) x *= 2;
  const int64_t y = kThreads / x;
  int64_t across = std::max<int64_t>(1, (packs + x - 1) / x), down = std::max<int64_t>(1, (rows + y - 1) / y);
  if (most) across = std::min(across, most);
  down = std::min(down, most ? std::max<int64_t>(1, most / across) : kGridRows);
  return {dim3(across, std::min(down, kGridRows), slots), dim3(x, y)};
}

// Whether packs of `vec` elements are aligned and never straddle the edge of a slot or the end of a row.
bool packs_fit(const Folded& f, int64_t vec, std::initializer_list<const void*> wide, const Slots& slots) {
  bool fit = f.at.rows == 1 || f.at.width % vec == 0;
  for (const void* p : wide) fit &= aligned(p);
  for (int s = 0; s < slots.count; ++s) {
    const Span span = f.spans[s];
    const bool whole = span.end % vec == 0 || (f.at.rows == 1 && span.end == f.at.width);
    fit &= span.begin % vec == 0 && whole && aligned(slots.seed[s]) && aligned(slots.d_seed[s]);
  }
  return fit;
}

Slots table(const Folded& f, const Tensors& seeds, const Tensors& d_seeds) {
  STD_TORCH_CHECK(f.spans.size() <= kSlots, "spans has ", f.spans.size(), " slots; one launch takes at most ", kSlots,
                  "; blend the rest in a second call");
  Slots slots{};
  slots.count = static_cast<int>(f.spans.size());
  for (int s = 0; s < slots.count; ++s) {
    slots.begin[s] = f.spans[s].begin, slots.end[s] = f.spans[s].end;
    if (!seeds.empty()) slots.seed[s] = seeds[s].const_data_ptr();
    if (!d_seeds.empty()) slots.d_seed[s] = d_seeds[s].mutable_data_ptr();
  }
  return slots;
}

template <typename T, int kVec>
void launch_forward(const Folded& f, const Tensor& host, const Slots& slots, const Tensor& alphas, bool convex,
                    const Tensor& out) {
  const Shape shape = shape_for(f.at.rows, (f.at.width + kVec - 1) / kVec, 1, 0);
  const auto kernel = convex ? &forward_kernel<T, kVec, true> : &forward_kernel<T, kVec, false>;
  kernel<<<shape.grid, shape.block, 0, current_stream(host.get_device_index())>>>(
      static_cast<const T*>(host.const_data_ptr()), slots, static_cast<const math_t<T>*>(alphas.const_data_ptr()),
      static_cast<T*>(out.mutable_data_ptr()), f.at.rows, f.at.width);
  check_launch("blend");
}

Tensor blend(const Tensor& host, Tensors seeds, const Tensor& alphas, std::vector<int64_t> spans, int64_t channel_dim,
             bool convex) {
  return checked_blend(host, seeds, alphas, spans, channel_dim, convex, [&](const Folded& f, const Tensor& out) {
    const torch::stable::accelerator::DeviceGuard guard(host.get_device_index());
    const Slots slots = table(f, seeds, {});
    const void* written = out.mutable_data_ptr();
    const auto fits = [&](int vec) { return packs_fit(f, vec, {host.const_data_ptr(), written}, slots); };
    with_type(host.scalar_type(), fits, [&](auto zero, auto vec) {
      launch_forward<decltype(zero), decltype(vec)::value>(f, host, slots, alphas, convex, out);
    });
  });
}

template <typename T, int kVec>
void launch_in_place(const Folded& f, const Tensor& host, const Slots& slots, const Tensor& alphas,
                     const Tensor& states, int64_t active, bool convex) {
  int64_t first = f.at.width, last = 0;
  for (const Span& span : f.spans) {
    if (span.begin >= span.end) continue;
    first = std::min(first, span.begin), last = std::max(last, span.end);
  }
  if (first >= last) return;
  // few blocks: a launch in which nothing takes part should be over soon
  const Shape shape = shape_for(f.at.rows, (last - first + kVec - 1) / kVec, 1, kBlocks);
  const auto kernel = convex ? &in_place_kernel<T, kVec, true> : &in_place_kernel<T, kVec, false>;
  kernel<<<shape.grid, shape.block, 0, current_stream(host.get_device_index())>>>(
      static_cast<T*>(host.mutable_data_ptr()), slots, static_cast<const math_t<T>*>(alphas.const_data_ptr()),
      static_cast<const uint8_t*>(states.const_data_ptr()), active, f.at.rows, f.at.width, first, last);
  check_launch("blend_");
}

void blend_in_place(const Tensor& host, Tensors seeds, const Tensor& alphas, const Tensor& states, int64_t active,
                    std::vector<int64_t> spans, int64_t channel_dim, bool convex) {
  const auto run = [&](const Leader& leader) {
    const torch::stable::accelerator::DeviceGuard guard(host.get_device_index());
    const Folded f = fold_blend(leader, spans);
    const Slots slots = table(f, seeds, {});
    const auto fits = [&](int vec) { return packs_fit(f, vec, {host.const_data_ptr()}, slots); };
    with_type(host.scalar_type(), fits, [&](auto zero, auto vec) {
      launch_in_place<decltype(zero), decltype(vec)::value>(f, host, slots, alphas, states, active, convex);
    });
  };
  checked_blend_in_place(host, seeds, alphas, states, active, spans, channel_dim, convex, run);
}

template <typename T, int kVec>
void launch_backward(const Folded& f, const Tensor& grad, const std::optional<Tensor>& host, const Slots& slots,
                     const Tensor& alphas, bool convex, const Gradients& d) {
  using M = math_t<T>;
  int64_t widest = 1, covered = 0;
  for (const Span& span : f.spans) {
    widest = std::max(widest, span.end - span.begin);
    covered += span.end - span.begin;
  }
  const bool rest = convex && covered < f.at.width, sums = d.alphas.has_value();
  const int64_t packs = ((rest ? f.at.width : widest) + kVec - 1) / kVec;
  const Shape shape = shape_for(f.at.rows, packs, slots.count + rest, sums ? kBlocks : 0);
  const int64_t blocks = static_cast<int64_t>(shape.grid.x) * shape.grid.y;
  std::optional<Tensor> shares;
  if (sums) shares = torch::stable::new_empty(alphas, {slots.count * blocks});
  const auto residual = sums ? &backward_kernel<T, kVec, false, true> : &backward_kernel<T, kVec, false, false>;
  const auto blended = sums ? &backward_kernel<T, kVec, true, true> : &backward_kernel<T, kVec, true, false>;
  const auto kernel = convex ? blended : residual;
  const cudaStream_t stream = current_stream(grad.get_device_index());
  kernel<<<shape.grid, shape.block, 0, stream>>>(
      static_cast<const T*>(grad.const_data_ptr()), host ? static_cast<const T*>(host->const_data_ptr()) : nullptr,
      slots, static_cast<const M*>(alphas.const_data_ptr()),
      d.host ? static_cast<T*>(d.host->mutable_data_ptr()) : nullptr,
      shares ? static_cast<M*>(shares->mutable_data_ptr()) : nullptr, f.at.rows, f.at.width);
  check_launch("blend_backward");
  if (!sums) return;
  sum_kernel<M><<<slots.count, kThreads, 0, stream>>>(static_cast<const M*>(shares->const_data_ptr()), blocks,
                                                      static_cast<M*>(d.alphas->mutable_data_ptr()));
  check_launch("blend_backward's sum");
}

Tensors blend_backward(const Tensor& grad, std::optional<Tensor> host, Tensors seeds, const Tensor& alphas,
                       std::vector<int64_t> spans, int64_t channel_dim, bool convex) {
  const auto run = [&](const Folded& f, const Gradients& d) {
    const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
    const Slots slots = table(f, seeds, d.seeds);
    const void* read = host ? host->const_data_ptr() : nullptr;
    const void* written = d.host ? d.host->mutable_data_ptr() : nullptr;
    const auto fits = [&](int vec) { return packs_fit(f, vec, {grad.const_data_ptr(), read, written}, slots); };
    with_type(grad.scalar_type(), fits, [&](auto zero, auto vec) {
      launch_backward<decltype(zero), decltype(vec)::value>(f, grad, host, slots, alphas, convex, d);
    });
  };
  return checked_backward(grad, host, seeds, alphas, spans, channel_dim, convex, run);
}

}  // namespace esper::cuda

STABLE_TORCH_LIBRARY_IMPL(esper_native, CUDA, m) {
  m.impl("blend", TORCH_BOX(&esper::cuda::blend));
  m.impl("blend_backward", TORCH_BOX(&esper::cuda::blend_backward));
  m.impl("blend_", TORCH_BOX(&esper::cuda::blend_in_place));
}
