// seed_stats on CUDA. Definition: seed_stats_reference in esper/ops/seed_stats.py.
//
// Two launches: blocks count parts of a chunk, one block per slot joins them. The cut depends on the shape alone, parts
// are joined in a fixed order, and the only atomics set bits, so a row is equal from run to run. A histogram is counted
// in shared memory by 16-bit counters of which each thread has its own. Nothing here synchronises or allocates outside
// torch, so a CUDA graph can capture it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../seed_stats.h"
#include "launch.cuh"
#include "pack.cuh"

namespace esper::cuda {

constexpr int kChunks = 64;        // slots per launch: their table is a kernel argument
constexpr int64_t kParts = 1024;   // blocks per slot, untuned: more would only lengthen the second pass
constexpr int kJoiners = 512;      // threads that join them
constexpr int kMost = 65535;       // of a 16-bit counter

struct Chunks {
  int64_t begin[kChunks], end[kChunks];  // columns
};

// How a chunk is cut: `tiles` of `cols` columns across, `strips` of rows down. A block takes a strip of every
// `across`-th tile. `words` hold a bit for each channel that a tile touches.
struct Cut {
  int64_t rows, width, unit, cols, tiles;
  int across, strips, words;
};

struct Part {
  Moments moments;
  double zeros, non_finite, abs_max;
  int64_t bins[kBins];
};

// What one thread has seen. Moments of packs are about `about`, the first pack's mean, so that data far from 0 lose
// nothing; they are added up in double.
template <typename M>
struct Seen {
  double about = 0, sum = 0, between = 0, within = 0, abs_max = 0;
  uint32_t count = 0, zeros = 0, non_finite = 0;  // a thread's share of 2**48 elements is 2**30

  __device__ void join(double mean, double squares, int n) {
    if (count == 0) about = mean;
    const double apart = mean - about;
    count += n, sum += n * apart, between += n * apart * apart, within += squares;
  }

  __device__ Moments moments() const {
    const double n = static_cast<double>(count);
    if (count == 0) return {0, 0, 0};
    return {n, about + sum / n, within + fmax(0.0, between - sum / n * sum)};
  }
};

// Thread-private counters [bin][thread], 16 bits each, laid out so that the 32 threads of a warp are in 32 banks.
struct Counters {
  uint16_t* own;  // this thread's, of bin 0; the next bin's is 2 * kThreads bytes on

  __device__ Counters(uint32_t* words, int thread)
      : own(reinterpret_cast<uint16_t*>(words + thread / 64 * 32 + thread % 32) + thread / 32 % 2) {}
  __device__ void add(int bin) const { ++own[bin * kThreads]; }
};

template <typename M>
__device__ int bin_of(M x, M per_unit) {
  const M place = x * per_unit + M(kBins / 2);
  return static_cast<int>(place > M(0) ? (place < M(kBins - 1) ? place : M(kBins - 1)) : M(0));
}

// A pack that is not whole or not finite, in double and one by one; read again, so that it costs no registers.
template <typename T, typename M>
__device__ __forceinline__ void see_slowly(const T* from, int inside, M per_unit, const Counters& counters,
                                           Seen<M>& seen) {
#pragma unroll 1
  for (int i = 0; i < inside; ++i) {
    const M x = static_cast<M>(__ldg(from + i));
    const double value = static_cast<double>(x);
    if (!isfinite(value)) {
      ++seen.non_finite;
      continue;
    }
    seen.zeros += value == 0;
    seen.abs_max = fmax(seen.abs_max, fabs(value));
    seen.join(value, 0, 1);
    if (per_unit > 0) counters.add(bin_of(x, per_unit));
  }
}

// Takes a pack; returns the bits of those elements that are not 0.
template <int kVec, typename T, typename M>
__device__ uint32_t see(const T* from, int inside, M per_unit, const Counters& counters, Seen<M>& seen) {
  M x[kVec];
  load<kVec>(from, inside, x);
  M mean = 0, largest = 0, squares = 0;
  uint32_t living = 0;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    mean += x[i] * M(1.0 / kVec);  // a sum of shares is finite where its elements are
    largest = fmax(largest, fabs(x[i]));
    living |= static_cast<uint32_t>(x[i] != M(0)) << i;
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const M apart = x[i] - mean;
    squares += apart * apart;
  }
  if (inside < kVec || !isfinite(mean) || !isfinite(squares)) {
    see_slowly(from, inside, per_unit, counters, seen);
    return living;
  }
  seen.join(mean, squares, kVec);
  seen.zeros += kVec - __popc(living);
  seen.abs_max = fmax(seen.abs_max, static_cast<double>(largest));
  if (per_unit > 0) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) counters.add(bin_of(x[i], per_unit));
  }
  return living;
}

// Joins the moments of the first `threads` threads, in thread 0; the order is fixed.
template <int kThreadsOf>
__device__ Moments block_joined(Moments mine) {
  __shared__ Moments parts[kThreadsOf / 32];
  for (int step = 16; step > 0; step /= 2) {
    const Moments other{__shfl_down_sync(0xffffffffu, mine.count, step), __shfl_down_sync(0xffffffffu, mine.mean, step),
                        __shfl_down_sync(0xffffffffu, mine.squares, step)};
    mine = joined(mine, other);
  }
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread % 32 == 0) parts[thread / 32] = mine;
  __syncthreads();
  Moments all{0, 0, 0};
  for (int i = 0; thread == 0 && i < kThreadsOf / 32; ++i) all = joined(all, parts[i]);
  __syncthreads();
  return all;
}

// `combine` over the block, in thread 0.
template <int kThreadsOf, typename Combine>
__device__ double block_reduced(double mine, const Combine& combine) {
  __shared__ double parts[kThreadsOf / 32];
  for (int step = 16; step > 0; step /= 2) mine = combine(mine, __shfl_down_sync(0xffffffffu, mine, step));
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread % 32 == 0) parts[thread / 32] = mine;
  __syncthreads();
  double all = 0;  // of sums and of largest magnitudes alike
  for (int i = 0; thread == 0 && i < kThreadsOf / 32; ++i) all = combine(all, parts[i]);
  __syncthreads();
  return all;
}

__device__ inline double sum_of(double a, double b) { return a + b; }
__device__ inline double larger_of(double a, double b) { return a > b ? a : b; }

// Adds the counters to their bin's total, held by every eighth thread, and empties them.
__device__ inline void empty_counters(uint32_t* words, int thread, int64_t& total) {
  __syncthreads();
  uint32_t sum = 0;
  uint32_t* mine = words + thread * (kBins * kThreads / 2 / kThreads);  // 16 words of bin thread / 8
#pragma unroll
  for (int i = 0; i < kBins / 2; ++i) {
    sum += (mine[i] & 0xffff) + (mine[i] >> 16);
    mine[i] = 0;
  }
  for (int step = 4; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step, 8);
  total += sum;
  __syncthreads();
}

// Writes the bits of channels in which a thread of the block has seen an element that is not 0.
template <int kVec>
__device__ void write_living(uint32_t living, int64_t first, int64_t col, const Cut& cut, uint32_t* shared,
                             uint32_t* words) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int w = thread; w < cut.words; w += kThreads) shared[w] = 0;
  __syncthreads();
  if (living) {
    const int64_t channel = col / cut.unit;
    int64_t place = col - channel * cut.unit;
    int bit = static_cast<int>(channel - first / cut.unit);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (living >> i & 1) atomicOr(&shared[bit / 32], 1u << bit % 32);
      if (++place == cut.unit) place = 0, ++bit;
    }
  }
  __syncthreads();
  for (int w = thread; w < cut.words; w += kThreads) words[w] = shared[w];
  __syncthreads();
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, kResident)
    count_kernel(const T* __restrict__ values, const __grid_constant__ Chunks chunks, const __grid_constant__ Cut cut,
                 const float* __restrict__ stats, Part* __restrict__ parts, uint32_t* __restrict__ living) {
  using M = math_t<T>;
  __shared__ uint32_t words[kBins * kThreads / 2];
  __shared__ uint32_t channels[kThreads * 16 / sizeof(T) / 32 + 2];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, s = blockIdx.z;
  for (int i = thread; i < kBins * kThreads / 2; i += kThreads) words[i] = 0;
  __syncthreads();
  const Counters counters(words, thread);
  const M per_unit = static_cast<M>(bins_per_unit(stats[s * kColumnCount + kLimit]));
  const int64_t width = chunks.end[s] - chunks.begin[s], down = static_cast<int64_t>(cut.strips) * blockDim.y;
  Seen<M> seen;
  int64_t total = 0;
  int counted = 0;
  for (int64_t tile = blockIdx.x; tile < cut.tiles; tile += cut.across) {
    const int64_t first = tile * cut.cols, col = first + threadIdx.x * kVec;
    if (first >= width) break;
    const int64_t left = width - col;
    const int inside = left >= kVec ? kVec : left > 0 ? static_cast<int>(left) : 0;
    uint32_t alive = 0;
    for (int64_t base = static_cast<int64_t>(blockIdx.y) * blockDim.y; base < cut.rows; base += down) {
      const int64_t row = base + threadIdx.y;
      if (row < cut.rows && inside > 0) {
        alive |= see<kVec>(values + row * cut.width + chunks.begin[s] + col, inside, per_unit, counters, seen);
      }
      counted += kVec;
      if (counted > kMost - kVec) {  // the same for all threads
        empty_counters(words, thread, total);
        counted = 0;
      }
    }
    write_living<kVec>(alive, first, col, cut, channels,
                       living + ((s * static_cast<int64_t>(cut.strips) + blockIdx.y) * cut.tiles + tile) * cut.words);
  }
  empty_counters(words, thread, total);
  Part* part = parts + (s * static_cast<int64_t>(cut.strips) + blockIdx.y) * cut.across + blockIdx.x;
  if (thread % 8 == 0) part->bins[thread / 8] = total;
  const Moments moments = block_joined<kThreads>(seen.moments());
  const double zeros = block_reduced<kThreads>(static_cast<double>(seen.zeros), sum_of);
  const double bad = block_reduced<kThreads>(static_cast<double>(seen.non_finite), sum_of);
  const double largest = block_reduced<kThreads>(seen.abs_max, larger_of);
  if (thread == 0) part->moments = moments, part->zeros = zeros, part->non_finite = bad, part->abs_max = largest;
}

// Whether one of every `lanes`-th tile and strip, from `lane`, that hold a channel's columns saw it alive.
__device__ inline bool seen_alive(const uint32_t* living, const Cut& cut, int64_t channel, int lane, int lanes) {
  const int64_t from = channel * cut.unit / cut.cols, to = ((channel + 1) * cut.unit - 1) / cut.cols;
  const int64_t across = to - from + 1;
  for (int64_t i = lane; i < across * cut.strips; i += lanes) {
    const int64_t strip = i / across, tile = from + i % across;
    const int64_t bit = channel - tile * cut.cols / cut.unit;
    if (living[(strip * cut.tiles + tile) * cut.words + bit / 32] >> bit % 32 & 1) return true;
  }
  return false;
}

// One block per slot makes its row.
__global__ void __launch_bounds__(kJoiners)
    join_kernel(const Part* __restrict__ parts, const uint32_t* __restrict__ living,
                const __grid_constant__ Chunks chunks, const __grid_constant__ Cut cut, double decay,
                float* __restrict__ stats) {
  __shared__ int64_t bins[kBins], shares[kJoiners];
  const int s = blockIdx.x, thread = threadIdx.x;
  const int64_t count = static_cast<int64_t>(cut.strips) * cut.across;
  const Part* mine = parts + s * count;
  Moments moments{0, 0, 0};
  double zeros = 0, bad = 0, largest = 0;
  for (int64_t i = thread; i < count; i += kJoiners) {
    moments = joined(moments, mine[i].moments);
    zeros += mine[i].zeros, bad += mine[i].non_finite, largest = larger_of(largest, mine[i].abs_max);
  }
  int64_t share = 0;
  for (int64_t i = thread / kBins; i < count; i += kJoiners / kBins) share += mine[i].bins[thread % kBins];
  shares[thread] = share;
  __syncthreads();
  if (thread < kBins) {
    share = 0;
    for (int i = thread; i < kJoiners; i += kBins) share += shares[i];
    bins[thread] = share;
  }
  const int64_t channels = (chunks.end[s] - chunks.begin[s]) / cut.unit;
  int lanes = 1;
  while (lanes < 32 && channels * lanes < kJoiners) lanes *= 2;
  const uint32_t* flags = living + s * static_cast<int64_t>(cut.strips) * cut.tiles * cut.words;
  double dead = 0;
  for (int64_t base = 0; base < channels; base += kJoiners / lanes) {
    const int64_t channel = base + thread / lanes;
    bool alive = channel >= channels || seen_alive(flags, cut, channel, thread % lanes, lanes);
    for (int step = lanes / 2; step > 0; step /= 2) alive |= __shfl_xor_sync(0xffffffffu, alive, step) != 0;
    dead += !alive && thread % lanes == 0;
  }
  Summary all{};
  all.moments = block_joined<kJoiners>(moments);
  all.zeros = block_reduced<kJoiners>(zeros, sum_of);
  all.non_finite = block_reduced<kJoiners>(bad, sum_of);
  all.abs_max = block_reduced<kJoiners>(largest, larger_of);
  all.dead = block_reduced<kJoiners>(dead, sum_of);
  all.channels = static_cast<double>(channels);
  if (thread == 0) write_row(all, bins, decay, stats + s * kColumnCount);
}

// The cut for the widest of the slots, in packs of `vec`; the block's shape comes with it.
Cut cut_for(const Folded& f, int64_t widest, int vec, dim3& block) {
  int64_t x = 1;
  while (x * vec < widest && x < kThreads) x *= 2;
  const int64_t y = kThreads / x;
  Cut cut{f.at.rows, f.at.width, std::max<int64_t>(f.at.unit, 1), x * vec, 0, 0, 0, 0};
  cut.tiles = std::max<int64_t>(1, (widest + cut.cols - 1) / cut.cols);
  cut.across = static_cast<int>(std::min(cut.tiles, kParts));
  const int64_t down = std::max<int64_t>(1, (cut.rows + y - 1) / y);
  cut.strips = static_cast<int>(std::min(down, std::max<int64_t>(1, kParts / cut.across)));
  cut.words = static_cast<int>(((cut.cols - 1) / cut.unit + 2 + 31) / 32);
  block = dim3(x, y);
  return cut;
}

bool packs_fit(const Folded& f, const Tensor& values, int vec) {
  bool fit = aligned(values.const_data_ptr()) && (f.at.rows == 1 || f.at.width % vec == 0);
  for (const Span& span : f.spans) fit &= span.begin % vec == 0;
  return fit;
}

template <typename T, int kVec>
void launch(const Folded& f, const Tensor& values, double decay, const Tensor& stats) {
  Chunks chunks{};
  int64_t widest = 1;
  for (size_t s = 0; s < f.spans.size(); ++s) {
    chunks.begin[s] = f.spans[s].begin, chunks.end[s] = f.spans[s].end;
    widest = std::max(widest, f.spans[s].end - f.spans[s].begin);
  }
  dim3 block;
  const Cut cut = cut_for(f, widest, kVec, block);
  const auto slots = static_cast<unsigned>(f.spans.size());
  const int64_t parts = slots * static_cast<int64_t>(cut.across) * cut.strips;
  const int64_t words = slots * cut.tiles * static_cast<int64_t>(cut.strips) * cut.words;
  const Tensor room = torch::stable::new_empty(stats, {parts * static_cast<int64_t>(sizeof(Part) / 4) + words});
  auto* at = static_cast<Part*>(room.mutable_data_ptr());
  auto* living = reinterpret_cast<uint32_t*>(at + parts);
  auto* rows = static_cast<float*>(stats.mutable_data_ptr());
  const cudaStream_t stream = current_stream(values.get_device_index());
  count_kernel<T, kVec><<<dim3(cut.across, cut.strips, slots), block, 0, stream>>>(
      static_cast<const T*>(values.const_data_ptr()), chunks, cut, rows, at, living);
  check_launch("seed_stats");
  join_kernel<<<slots, kJoiners, 0, stream>>>(at, living, chunks, cut, decay, rows);
  check_launch("seed_stats' second pass");
}

void seed_stats(const Tensor& values, std::vector<int64_t> spans, int64_t channel_dim, double decay, Tensor stats) {
  const Folded f = checked_stats(values, spans, channel_dim, decay, stats);
  STD_TORCH_CHECK(f.spans.size() <= kChunks, "spans has ", f.spans.size(), " slots; one launch takes at most ", kChunks,
                  "; take the rest in a second call");
  const torch::stable::accelerator::DeviceGuard guard(values.get_device_index());
  const auto fits = [&](int vec) { return packs_fit(f, values, vec); };
  with_type(values.scalar_type(), fits, [&](auto zero, auto vec) {
    launch<decltype(zero), decltype(vec)::value>(f, values, decay, stats);
  });
}

}  // namespace esper::cuda

STABLE_TORCH_LIBRARY_IMPL(esper_native, CUDA, m) {
  m.impl("seed_stats", TORCH_BOX(&esper::cuda::seed_stats));
}
