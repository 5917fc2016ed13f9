// What seed_stats' CPU and CUDA implementations share: its columns, its arguments, and the arithmetic that joins
// parts of a chunk and makes a row of them. The definition of the op is `seed_stats_reference` in
// esper/ops/seed_stats.py.
#pragma once

#include <cmath>

#include "blend.h"

#ifdef __CUDACC__
#define ESPER_BOTH __host__ __device__
#else
#define ESPER_BOTH
#endif

namespace esper {

enum Column { kMean, kVariance, kZeroRatio, kDeadRatio, kEntropy, kAbsMax, kNonFinite, kLimit, kColumnCount };

constexpr int kBins = 32;
constexpr double kSmallestLimit = 0x1p-120;  // below it kBins / (2 * limit) is no float

// Count, mean and sum of squared deviations.
struct Moments {
  double count, mean, squares;
};

// Chan, Golub and LeVeque 1979: the moments of two sets together.
ESPER_BOTH inline Moments joined(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double count = a.count + b.count, apart = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

// Bins per unit of value; 0 where the limit measures nothing and no histogram is taken.
ESPER_BOTH inline double bins_per_unit(float limit) {
  return limit >= kSmallestLimit && limit <= 3.4028234663852886e38 ? kBins / 2 / static_cast<double>(limit) : 0;
}

// A chunk, counted. `channels` are the dead and the living.
struct Summary {
  Moments moments;
  double zeros, non_finite, abs_max, dead, channels;
};

ESPER_BOTH inline void write_row(const Summary& s, const int64_t* bins, double decay, float* row) {
  const double none = NAN, n = s.moments.count;
  const float limit = row[kLimit];
  double entropy = bins_per_unit(limit) > 0 && n > 0 ? 0 : none;
  for (int b = 0; entropy == entropy && b < kBins; ++b) {
    const double share = bins[b] / n;
    if (bins[b] > 0) entropy -= share * log(share);
  }
  row[kMean] = static_cast<float>(n > 0 ? s.moments.mean : none);
  row[kVariance] = static_cast<float>(n > 0 ? s.moments.squares / n : none);
  row[kZeroRatio] = static_cast<float>(n > 0 ? s.zeros / n : none);
  row[kDeadRatio] = static_cast<float>(n + s.non_finite > 0 ? s.dead / s.channels : none);
  row[kEntropy] = static_cast<float>(entropy);
  row[kAbsMax] = static_cast<float>(n > 0 ? s.abs_max : none);
  row[kNonFinite] = static_cast<float>(s.non_finite);
  if (!(n > 0)) return;
  const double faded = limit > 0 && limit <= 3.4028234663852886e38 ? decay * limit : 0;
  row[kLimit] = static_cast<float>(s.abs_max > faded ? s.abs_max : faded);
}

// The bytes a dense tensor lies in.
inline bool share_memory(const Tensor& a, int64_t a_size, const Tensor& b, int64_t b_size) {
  const auto* p = static_cast<const char*>(a.const_data_ptr());
  const auto* q = static_cast<const char*>(b.const_data_ptr());
  return a.numel() > 0 && b.numel() > 0 && p < q + b.numel() * b_size && q < p + a.numel() * a_size;
}

inline int64_t element_size(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

// Checks the arguments and folds `values`; spans are columns.
inline Folded checked_stats(const Tensor& values, const std::vector<int64_t>& spans, int64_t channel_dim, double decay,
                            const Tensor& stats) {
  check_floating({"values"}, values);
  STD_TORCH_CHECK(0 <= channel_dim && channel_dim < values.dim(), "channel_dim is ", channel_dim, ", not inside [0, ",
                  values.dim(), ")");
  const Order order = memory_order(values);
  check_dense({"values"}, values, order);
  check_spans(spans, values.size(channel_dim), false);
  STD_TORCH_CHECK(decay >= 0 && decay <= 1, "decay is ", decay, ", must be in [0, 1]");
  check_device({"stats"}, stats, {"values"}, values);
  check_type({"stats"}, stats, ScalarType::Float, "whatever the dtype of values");
  const auto slots = static_cast<int64_t>(spans.size() / 2);
  STD_TORCH_CHECK(stats.dim() == 2 && stats.size(0) == slots && stats.size(1) == kColumnCount && stats.is_contiguous(),
                  "stats is ", shape_text(stats), ", must be a contiguous [", slots, ", ", int{kColumnCount},
                  "], one row per slot");
  STD_TORCH_CHECK(!share_memory(values, element_size(values.scalar_type()), stats, 4),
                  "stats shares memory with values; it is written while values are read, so give it its own");
  Folded f{fold(values, order, channel_dim), {}};
  for (size_t s = 0; s < spans.size(); s += 2) f.spans.push_back({spans[s] * f.at.unit, spans[s + 1] * f.at.unit});
  return f;
}

}  // namespace esper
