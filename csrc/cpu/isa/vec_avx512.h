// Vectors of 512 bits: 16 floats or 8 doubles. Included by one source file per instruction set,
// never by another header.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels/half.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

struct VecF {
  using Scalar = float;
  static constexpr int kLanes = 16;
  __m512 x;

  static VecF zero() { return {_mm512_setzero_ps()}; }
  static VecF set1(float s) { return {_mm512_set1_ps(s)}; }
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static VecF load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static VecF load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static VecF load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static VecF load_first(const BFloat16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
  }
  void store(float* p) const { _mm512_storeu_ps(p, x); }
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), x); }
  void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  void store_first(BFloat16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow()); }
  static VecF load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static VecF load_first(const Float16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
  }
  void store(Float16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  void store_first(Float16* p, int n) const {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }

  static VecF widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // Round to nearest even; a NaN keeps its upper bits and is made quiet, so that rounding cannot
  // turn it into Inf.
  __m256i narrow() const {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
  }
};

inline VecF operator+(VecF a, VecF b) { return {_mm512_add_ps(a.x, b.x)}; }
inline VecF operator-(VecF a, VecF b) { return {_mm512_sub_ps(a.x, b.x)}; }
inline VecF operator*(VecF a, VecF b) { return {_mm512_mul_ps(a.x, b.x)}; }
inline VecF operator/(VecF a, VecF b) { return {_mm512_div_ps(a.x, b.x)}; }
inline VecF fmadd(VecF a, VecF b, VecF c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
inline VecF fmsub(VecF a, VecF b, VecF c) { return {_mm512_fmsub_ps(a.x, b.x, c.x)}; }
// b where either is NaN: the newer operand goes second, so that a NaN score is not lost against a
// bound.
inline VecF max(VecF a, VecF b) { return {_mm512_max_ps(a.x, b.x)}; }
// then where a == b, otherwise.
inline VecF select_equal(VecF a, VecF b, VecF then, VecF otherwise) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ), otherwise.x, then.x)};
}
// then where a < b, otherwise (also where either is NaN).
inline VecF select_less(VecF a, VecF b, VecF then, VecF otherwise) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.x, b.x, _CMP_LT_OQ), otherwise.x, then.x)};
}
inline VecF keep_first(VecF a, int n, VecF otherwise) {
  return {_mm512_mask_blend_ps(VecF::first(n), otherwise.x, a.x)};
}
// 0 where a is NaN or Inf: a - a is 0 only for finite numbers.
inline VecF zero_non_finite(VecF a) {
  const __m512 d = _mm512_sub_ps(a.x, a.x);
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, _mm512_setzero_ps(), _CMP_EQ_OQ), a.x)};
}
inline float reduce_max(VecF a) { return _mm512_reduce_max_ps(a.x); }
inline float reduce_add(VecF a) { return _mm512_reduce_add_ps(a.x); }
inline VecF round_nearest(VecF a) { return {_mm512_roundscale_ps(a.x, _MM_FROUND_TO_NEAREST_INT)}; }
// a * 2^n; below the smallest float the result is 0.
inline VecF scale_by_power(VecF a, VecF n) { return {_mm512_scalef_ps(a.x, n.x)}; }

struct VecD {
  using Scalar = double;
  static constexpr int kLanes = 8;
  __m512d x;

  static VecD zero() { return {_mm512_setzero_pd()}; }
  static VecD set1(double s) { return {_mm512_set1_pd(s)}; }
  static __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
  static VecD load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static VecD load_first(const double* p, int n) { return {_mm512_maskz_loadu_pd(first(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, x); }
  void store_first(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), x); }
};

inline VecD operator+(VecD a, VecD b) { return {_mm512_add_pd(a.x, b.x)}; }
inline VecD operator-(VecD a, VecD b) { return {_mm512_sub_pd(a.x, b.x)}; }
inline VecD operator*(VecD a, VecD b) { return {_mm512_mul_pd(a.x, b.x)}; }
inline VecD operator/(VecD a, VecD b) { return {_mm512_div_pd(a.x, b.x)}; }
inline VecD fmadd(VecD a, VecD b, VecD c) { return {_mm512_fmadd_pd(a.x, b.x, c.x)}; }
inline VecD fmsub(VecD a, VecD b, VecD c) { return {_mm512_fmsub_pd(a.x, b.x, c.x)}; }
inline VecD max(VecD a, VecD b) { return {_mm512_max_pd(a.x, b.x)}; }
inline VecD select_equal(VecD a, VecD b, VecD then, VecD otherwise) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.x, b.x, _CMP_EQ_OQ), otherwise.x, then.x)};
}
inline VecD select_less(VecD a, VecD b, VecD then, VecD otherwise) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.x, b.x, _CMP_LT_OQ), otherwise.x, then.x)};
}
inline VecD keep_first(VecD a, int n, VecD otherwise) {
  return {_mm512_mask_blend_pd(VecD::first(n), otherwise.x, a.x)};
}
inline VecD zero_non_finite(VecD a) {
  const __m512d d = _mm512_sub_pd(a.x, a.x);
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(d, _mm512_setzero_pd(), _CMP_EQ_OQ), a.x)};
}
inline double reduce_max(VecD a) { return _mm512_reduce_max_pd(a.x); }
inline double reduce_add(VecD a) { return _mm512_reduce_add_pd(a.x); }
inline VecD round_nearest(VecD a) { return {_mm512_roundscale_pd(a.x, _MM_FROUND_TO_NEAREST_INT)}; }
inline VecD scale_by_power(VecD a, VecD n) { return {_mm512_scalef_pd(a.x, n.x)}; }

// Rows of 16 32-bit words to columns, in four rounds: pairs, quads, then 128-bit blocks twice.
inline void transpose(__m512 r[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

inline void transpose(VecF rows[16]) {
  __m512 r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = rows[i].x;
  transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i].x = r[i];
}

// 32 registers: rows of a tile of n vectors, so that accumulators, n operands and one broadcast
// fit.
constexpr int kMaxTileVectors = 5;
// Longest sum that a tile forms in one go. Rounding grows with it: 530 equal values summed in a row
// were off by 17 ulp. Reloading C costs 3 % of such a tile.
constexpr int64_t kMaxChain = 64;
constexpr int max_tile_rows(int vectors) {
  constexpr int rows[] = {0, 16, 12, 8, 6, 5};
  return rows[vectors];
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
