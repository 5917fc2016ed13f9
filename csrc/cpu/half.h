// fp16 rows, converted eight at a time: compilers of this generation do not vectorise these two conversions.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ESPER_F16C 1
#endif

namespace esper::cpu {

using torch::headeronly::Half;

inline void widen_plain(const Half* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

inline void narrow_plain(const float* from, Half* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Half>(from[i]);
}

// add_one of blend.cpp, for one row.
template <bool kConvex>
inline void add_row_plain(const Half* host, const Half* seed, float alpha, Half* out, int64_t n) {
  const bool near_seed = kConvex && !(alpha < 0.5f);
  const float step = near_seed ? alpha - 1 : alpha;
  for (int64_t i = 0; i < n; ++i) {
    const float h = static_cast<float>(host[i]), g = static_cast<float>(seed[i]);
    out[i] = static_cast<Half>((near_seed ? g : h) + step * (kConvex ? g - h : g));
  }
}

#ifdef ESPER_F16C
__attribute__((target("avx,f16c"))) inline void widen_f16c(const Half* from, float* to, int64_t n) {
  const int64_t whole = n - n % 8;
  for (int64_t i = 0; i < whole; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  widen_plain(from + whole, to + whole, n - whole);
}

__attribute__((target("avx,f16c"))) inline void narrow_f16c(const float* from, Half* to, int64_t n) {
  const int64_t whole = n - n % 8;
  for (int64_t i = 0; i < whole; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
  }
  narrow_plain(from + whole, to + whole, n - whole);
}

template <bool kConvex>
__attribute__((target("avx,f16c"))) inline void add_row_f16c(const Half* host, const Half* seed, float alpha, Half* out,
                                                             int64_t n) {
  const bool near_seed = kConvex && !(alpha < 0.5f);
  const __m256 step = _mm256_set1_ps(near_seed ? alpha - 1 : alpha);
  const int64_t whole = n - n % 8;
  for (int64_t i = 0; i < whole; i += 8) {
    const __m256 h = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(host + i)));
    const __m256 g = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(seed + i)));
    const __m256 o = _mm256_add_ps(near_seed ? g : h, _mm256_mul_ps(step, kConvex ? _mm256_sub_ps(g, h) : g));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(o, 0));
  }
  add_row_plain<kConvex>(host + whole, seed + whole, alpha, out + whole, n - whole);
}

inline const bool has_f16c = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
inline const auto widen = has_f16c ? widen_f16c : widen_plain;
inline const auto narrow = has_f16c ? narrow_f16c : narrow_plain;
template <bool kConvex>
inline const auto add_row = has_f16c ? add_row_f16c<kConvex> : add_row_plain<kConvex>;
#else
inline const auto widen = widen_plain;
inline const auto narrow = narrow_plain;
template <bool kConvex>
inline const auto add_row = add_row_plain<kConvex>;
#endif

}  // namespace esper::cpu
