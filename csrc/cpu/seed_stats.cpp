// seed_stats on CPU. Definition: seed_stats_reference in esper/ops/seed_stats.py.
//
// A chunk is cut into tiles by its shape alone, and tiles are joined in order, so results do not depend on the number
// of threads. A tile is read once, kStage elements at a time; the loops over these find them in L1.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <cstring>
#include <limits>

#include "../seed_stats.h"
#include "tiles.h"
#include "types.h"

namespace esper::cpu {

constexpr int64_t kStage = 1024;
constexpr int64_t kLanes = 32;  // partial sums: two AVX-512 registers of float
constexpr int64_t kCopies = 4;  // of the histogram: neighbours that fall in one bin do not wait for each other

template <typename M>
using bits_t = std::conditional_t<std::is_same_v<M, double>, int64_t, int32_t>;

// What tells a number's kind is its bits without the sign: 0, finite, or at least infinity's.
template <typename M>
constexpr bits_t<M> kInfinity = std::is_same_v<M, double> ? bits_t<M>(0x7ff0000000000000) : bits_t<M>(0x7f800000);

struct Part {
  Moments moments{};
  int64_t zeros = 0, non_finite = 0;
  double abs_max = 0;
  std::array<uint32_t, kBins> bins{};
};

template <typename M>
struct Kinds {
  bits_t<M> zeros, bad, largest;
};

template <typename M>
ESPER_CLONES void magnitudes(const M* __restrict from, bits_t<M>* __restrict to, int64_t n, Kinds<M>* kinds) {
  bits_t<M> zeros = 0, bad = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    bits_t<M> bits;
    std::memcpy(&bits, from + i, sizeof bits);
    bits &= std::numeric_limits<bits_t<M>>::max();
    to[i] = bits;
    zeros += bits == 0;
    bad += bits >= kInfinity<M>;
    const bits_t<M> finite = bits < kInfinity<M> ? bits : 0;
    largest = finite > largest ? finite : largest;
  }
  *kinds = {zeros, bad, largest};
}

template <typename M>
ESPER_CLONES void mark_living(const bits_t<M>* __restrict bits, uint8_t* __restrict living, int64_t n) {
  for (int64_t i = 0; i < n; ++i) living[i] |= static_cast<uint8_t>(bits[i] != 0);
}

template <typename T>
ESPER_CLONES void stage(const T* __restrict from, math_t<T>* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<math_t<T>>(from[i]);
}

inline void stage(const Half* from, float* to, int64_t n) { widen(from, to, n); }

// Sums of x - about and of its square, by lanes.
template <typename M>
ESPER_CLONES void sum_about(const M* __restrict x, int64_t n, M about, M* __restrict sums, M* __restrict squares) {
  M first[kLanes] = {}, second[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const M apart = x[i + j] - about;
      first[j] += apart;
      second[j] += apart * apart;
    }
  }
  for (int64_t i = whole; i < n; ++i) {
    const M apart = x[i] - about;
    first[i - whole] += apart;
    second[i - whole] += apart * apart;
  }
  for (int64_t j = 0; j < kLanes; ++j) sums[j] = first[j], squares[j] = second[j];
}

Moments moments_about(double about, double n, double sum, double squares) {
  return {n, about + sum / n, std::max(0.0, squares - sum * sum / n)};
}

// Of n > 0 finite numbers. Numbers whose sums leave M's range are summed in double.
template <typename M>
Moments moments_of(const M* x, int64_t n) {
  M sums[kLanes], squares[kLanes];
  const auto total = [](const M* lanes) {
    double sum = 0;
    for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
    return sum;
  };
  sum_about(x, n, M(0), sums, squares);
  const M about = static_cast<M>(total(sums) / n);
  sum_about(x, n, about, sums, squares);
  const Moments made = moments_about(about, n, total(sums), total(squares));
  if (std::isfinite(made.mean) && std::isfinite(made.squares)) return made;
  Moments slow{};
  for (int64_t i = 0; i < n; ++i) slow = joined(slow, {1, static_cast<double>(x[i]), 0});
  return slow;
}

template <typename M>
ESPER_CLONES void find_bins(const M* __restrict x, int32_t* __restrict bins, int64_t n, M per_unit) {
  for (int64_t i = 0; i < n; ++i) {
    M place = x[i] * per_unit + M(kBins / 2);
    place = place > M(0) ? place : M(0);
    place = place < M(kBins - 1) ? place : M(kBins - 1);
    bins[i] = static_cast<int32_t>(place);
  }
}

void count_bins(const int32_t* bins, int64_t n, std::array<uint32_t, kBins>& counts) {
  uint32_t copies[kCopies][kBins] = {};
  const int64_t whole = n - n % kCopies;
  for (int64_t i = 0; i < whole; i += kCopies) {
    for (int64_t j = 0; j < kCopies; ++j) ++copies[j][bins[i + j]];
  }
  for (int64_t i = whole; i < n; ++i) ++copies[0][bins[i]];
  for (const auto& copy : copies) {
    for (int b = 0; b < kBins; ++b) counts[b] += copy[b];
  }
}

// Takes elements into `part`, kStage at a time.
template <typename T>
class Counter {
  using M = math_t<T>;

 public:
  Counter(Part& part, double per_unit) : part_(part), per_unit_(static_cast<M>(per_unit)) {}

  void take(const T* from, int64_t n, uint8_t* living) {
    while (n > 0) {
      const int64_t now = std::min(n, kStage - filled_);
      stage(from, values_ + filled_, now);
      Kinds<M> kinds;
      magnitudes(values_ + filled_, bits_, now, &kinds);
      part_.zeros += kinds.zeros;
      part_.non_finite += kinds.bad;
      M largest;
      std::memcpy(&largest, &kinds.largest, sizeof largest);
      part_.abs_max = std::max(part_.abs_max, static_cast<double>(largest));
      if (kinds.zeros) mark_living<M>(bits_, living, now);
      else std::memset(living, 1, now);
      filled_ += kinds.bad ? kept(now) : now;
      from += now, living += now, n -= now;
      if (filled_ == kStage) flush();
    }
  }

  void flush() {
    if (filled_ == 0) return;
    part_.moments = joined(part_.moments, moments_of(values_, filled_));
    if (per_unit_ > 0) {
      int32_t bins[kStage];
      find_bins(values_, bins, filled_, per_unit_);
      count_bins(bins, filled_, part_.bins);
    }
    filled_ = 0;
  }

 private:
  // Moves the finite ones of the last `n` together and returns how many they are.
  int64_t kept(int64_t n) {
    M* x = values_ + filled_;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (bits_[i] < kInfinity<M>) x[count++] = x[i];
    }
    return count;
  }

  Part& part_;
  const M per_unit_;
  int64_t filled_ = 0;
  M values_[kStage];
  bits_t<M> bits_[kStage];
};

// One slot's chunk as a matrix of its own, at the columns from span.begin of a wider one.
struct Chunk {
  Span span;
  int64_t width, unit;
  Tiles tiles;
  size_t first_part, first_channel;
  double per_unit;

  int64_t channels() const { return (span.end - span.begin) / unit; }
};

template <typename T>
void count_tile(const T* values, const Chunk& chunk, const Tile& tile, Part& part, std::atomic<uint8_t>* alive) {
  uint8_t living[kTile] = {};
  Counter<T> counter(part, chunk.per_unit);
  const int64_t cols = tile.cols.end - tile.cols.begin;
  const T* from = values + tile.row * chunk.width + chunk.span.begin + tile.cols.begin;
  for (int64_t r = 0; r < tile.rows; ++r, from += chunk.width) counter.take(from, cols, living);
  counter.flush();
  for (int64_t begin = tile.cols.begin; begin < tile.cols.end;) {
    const int64_t channel = begin / chunk.unit, end = std::min((channel + 1) * chunk.unit, tile.cols.end);
    const uint8_t* of_channel = living + (begin - tile.cols.begin);
    // every writer writes the same, so their order does not matter
    if (std::memchr(of_channel, 1, end - begin)) alive[channel].store(1, std::memory_order_relaxed);
    begin = end;
  }
}

Summary summarise(const Part* parts, int64_t count, const std::atomic<uint8_t>* alive, int64_t channels,
                  int64_t* bins) {
  Summary all{};
  for (int64_t i = 0; i < count; ++i) {
    all.moments = joined(all.moments, parts[i].moments);
    all.zeros += static_cast<double>(parts[i].zeros);
    all.non_finite += static_cast<double>(parts[i].non_finite);
    all.abs_max = std::max(all.abs_max, parts[i].abs_max);
    for (int b = 0; b < kBins; ++b) bins[b] += parts[i].bins[b];
  }
  all.channels = static_cast<double>(channels);
  for (int64_t c = 0; c < channels; ++c) all.dead += !alive[c].load(std::memory_order_relaxed);
  return all;
}

template <typename T>
void run(const Folded& f, const Tensor& values, double decay, float* stats) {
  std::vector<Chunk> chunks;
  size_t parts_count = 0, channels = 0;
  for (size_t s = 0; s < f.spans.size(); ++s) {
    const Span span = f.spans[s];
    const Tiles tiles(Matrix{f.at.rows, span.end - span.begin, f.at.unit});
    const double per_unit = bins_per_unit(stats[s * kColumnCount + kLimit]);
    chunks.push_back({span, f.at.width, std::max<int64_t>(f.at.unit, 1), tiles, parts_count, channels, per_unit});
    parts_count += tiles.count;
    channels += chunks.back().channels();
  }
  std::vector<Part> parts(parts_count);
  std::vector<std::atomic<uint8_t>> alive(channels);
  const T* from = static_cast<const T*>(values.const_data_ptr());
  for (const Chunk& chunk : chunks) {
    torch::stable::parallel_for(0, chunk.tiles.count, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        count_tile(from, chunk, chunk.tiles[i], parts[chunk.first_part + i], alive.data() + chunk.first_channel);
      }
    });
  }
  for (size_t s = 0; s < chunks.size(); ++s) {
    int64_t bins[kBins] = {};
    const Chunk& chunk = chunks[s];
    const Summary all = summarise(parts.data() + chunk.first_part, chunk.tiles.count, alive.data() + chunk.first_channel,
                                  chunk.channels(), bins);
    write_row(all, bins, decay, stats + s * kColumnCount);
  }
}

void seed_stats(const Tensor& values, std::vector<int64_t> spans, int64_t channel_dim, double decay, Tensor stats) {
  const Folded f = checked_stats(values, spans, channel_dim, decay, stats);
  auto* rows = static_cast<float*>(stats.mutable_data_ptr());
  with_type(values.scalar_type(), [&](auto zero) { run<decltype(zero)>(f, values, decay, rows); });
}

}  // namespace esper::cpu

STABLE_TORCH_LIBRARY_IMPL(esper_native, CPU, m) {
  m.impl("seed_stats", TORCH_BOX(&esper::cpu::seed_stats));
}
