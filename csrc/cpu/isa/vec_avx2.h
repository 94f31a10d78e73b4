// Vectors of 256 bits: 8 floats or 4 doubles. Included by one source file per instruction set,
// never by another header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels/half.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

inline __m256i first_lanes_32(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256i first_lanes_64(int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

struct VecF {
  using Scalar = float;
  static constexpr int kLanes = 8;
  __m256 x;

  static VecF zero() { return {_mm256_setzero_ps()}; }
  static VecF set1(float s) { return {_mm256_set1_ps(s)}; }
  static VecF load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static VecF load_first(const float* p, int n) {
    return {_mm256_maskload_ps(p, first_lanes_32(n))};
  }
  static VecF load(const BFloat16* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static VecF load_first(const BFloat16* p, int n) {
    alignas(16) BFloat16 lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  void store(float* p) const { _mm256_storeu_ps(p, x); }
  // By halves: a masked store takes some 40 micro-operations on AMD's cores.
  void store_first(float* p, int n) const {
    if (n >= kLanes) return store(p);
    __m128 rest = _mm256_castps256_ps128(x);
    if (n & 4) {
      _mm_storeu_ps(p, rest);
      p += 4;
      rest = _mm256_extractf128_ps(x, 1);
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      p += 2;
      rest = _mm_movehl_ps(rest, rest);
    }
    if (n & 1) _mm_store_ss(p, rest);
  }
  void store(BFloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
  void store_first(BFloat16* p, int n) const {
    alignas(16) BFloat16 lanes[8];
    store(lanes);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static VecF load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static VecF load_first(const Float16* p, int n) {
    alignas(16) Float16 lanes[8] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  void store_first(Float16* p, int n) const {
    alignas(16) Float16 lanes[8];
    store(lanes);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }

  static VecF widen(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  // Round to nearest even; a NaN keeps its upper bits and is made quiet, so that rounding cannot
  // turn it into Inf.
  __m128i narrow() const {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    // packus works within 128-bit halves; the permutation brings the two useful quarters together.
    return _mm256_castsi256_si128(
        _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0xd8));
  }
};

inline VecF operator+(VecF a, VecF b) { return {_mm256_add_ps(a.x, b.x)}; }
inline VecF operator-(VecF a, VecF b) { return {_mm256_sub_ps(a.x, b.x)}; }
inline VecF operator*(VecF a, VecF b) { return {_mm256_mul_ps(a.x, b.x)}; }
inline VecF operator/(VecF a, VecF b) { return {_mm256_div_ps(a.x, b.x)}; }
inline VecF fmadd(VecF a, VecF b, VecF c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
inline VecF fmsub(VecF a, VecF b, VecF c) { return {_mm256_fmsub_ps(a.x, b.x, c.x)}; }
// b where either is NaN: the newer operand goes second, so that a NaN score is not lost against a
// bound.
inline VecF max(VecF a, VecF b) { return {_mm256_max_ps(a.x, b.x)}; }
// then where a == b, otherwise.
inline VecF select_equal(VecF a, VecF b, VecF then, VecF otherwise) {
  return {_mm256_blendv_ps(otherwise.x, then.x, _mm256_cmp_ps(a.x, b.x, _CMP_EQ_OQ))};
}
// then where a < b, otherwise (also where either is NaN).
inline VecF select_less(VecF a, VecF b, VecF then, VecF otherwise) {
  return {_mm256_blendv_ps(otherwise.x, then.x, _mm256_cmp_ps(a.x, b.x, _CMP_LT_OQ))};
}
inline VecF keep_first(VecF a, int n, VecF otherwise) {
  return {_mm256_blendv_ps(otherwise.x, a.x, _mm256_castsi256_ps(first_lanes_32(n)))};
}
// 0 where a is NaN or Inf: a - a is 0 only for finite numbers.
inline VecF zero_non_finite(VecF a) {
  const __m256 finite = _mm256_cmp_ps(_mm256_sub_ps(a.x, a.x), _mm256_setzero_ps(), _CMP_EQ_OQ);
  return {_mm256_and_ps(a.x, finite)};
}
inline float reduce_max(VecF a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline float reduce_add(VecF a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.x), _mm256_extractf128_ps(a.x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline VecF round_nearest(VecF a) {
  return {_mm256_round_ps(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for n >= -126; below that 0, since the exponent field has no room (denormals are not
// worth their cost here).
inline VecF scale_by_power(VecF a, VecF n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.x), _mm256_set1_epi32(127));
  const __m256 scaled = _mm256_mul_ps(a.x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  return {_mm256_andnot_ps(_mm256_cmp_ps(n.x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ), scaled)};
}

struct VecD {
  using Scalar = double;
  static constexpr int kLanes = 4;
  __m256d x;

  static VecD zero() { return {_mm256_setzero_pd()}; }
  static VecD set1(double s) { return {_mm256_set1_pd(s)}; }
  static VecD load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static VecD load_first(const double* p, int n) {
    return {_mm256_maskload_pd(p, first_lanes_64(n))};
  }
  void store(double* p) const { _mm256_storeu_pd(p, x); }
  void store_first(double* p, int n) const { _mm256_maskstore_pd(p, first_lanes_64(n), x); }
};

inline VecD operator+(VecD a, VecD b) { return {_mm256_add_pd(a.x, b.x)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm256_sub_pd(a.x, b.x)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm256_mul_pd(a.x, b.x)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm256_div_pd(a.x, b.x)}; }
inline VecD fmadd(VecD a, VecD b, VecD c) { return {_mm256_fmadd_pd(a.x, b.x, c.x)}; }
inline VecD fmsub(VecD a, VecD b, VecD c) { return {_mm256_fmsub_pd(a.x, b.x, c.x)}; }
inline VecD max(VecD a, VecD b) { return {_mm256_max_pd(a.x, b.x)}; }
inline VecD select_equal(VecD a, VecD b, VecD then, VecD otherwise) {
  return {_mm256_blendv_pd(otherwise.x, then.x, _mm256_cmp_pd(a.x, b.x, _CMP_EQ_OQ))};
}
inline VecD select_less(VecD a, VecD b, VecD then, VecD otherwise) {
  return {_mm256_blendv_pd(otherwise.x, then.x, _mm256_cmp_pd(a.x, b.x, _CMP_LT_OQ))};
}
inline VecD keep_first(VecD a, int n, VecD otherwise) {
  return {_mm256_blendv_pd(otherwise.x, a.x, _mm256_castsi256_pd(first_lanes_64(n)))};
}
inline VecD zero_non_finite(VecD a) {
  const __m256d finite = _mm256_cmp_pd(_mm256_sub_pd(a.x, a.x), _mm256_setzero_pd(), _CMP_EQ_OQ);
  return {_mm256_and_pd(a.x, finite)};
}
inline double reduce_max(VecD a) {
  const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(a.x), _mm256_extractf128_pd(a.x, 1));
  return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
inline double reduce_add(VecD a) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.x), _mm256_extractf128_pd(a.x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
inline VecD round_nearest(VecD a) {
  return {_mm256_round_pd(a.x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline VecD scale_by_power(VecD a, VecD n) {
  const __m256i wide = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.x));
  const __m256i exponent = _mm256_add_epi64(wide, _mm256_set1_epi64x(1023));
  const __m256d scaled = _mm256_mul_pd(a.x, _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52)));
  return {_mm256_andnot_pd(_mm256_cmp_pd(n.x, _mm256_set1_pd(-1022.0), _CMP_LT_OQ), scaled)};
}

inline void transpose(VecF rows[8]) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i].x, rows[2 * i + 1].x);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i].x, rows[2 * i + 1].x);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i].x = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    rows[4 + i].x = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// 16 registers: rows of a tile of n vectors, so that accumulators, n operands and one broadcast
// fit.
constexpr int kMaxTileVectors = 3;
// Longest sum that a tile forms in one go. Rounding grows with it: 530 equal values summed in a row
// were off by 17 ulp. Reloading C costs 3 % of such a tile.
constexpr int64_t kMaxChain = 64;
constexpr int max_tile_rows(int vectors) {
  constexpr int rows[] = {0, 12, 6, 4};
  return rows[vectors];
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
