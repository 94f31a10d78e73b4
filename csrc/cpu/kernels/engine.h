// What the multiply units eat. An engine says which words an element type is packed into and how
// two words are multiplied into an accumulator; packing, micro-kernel and attention are written
// once over engines.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/float16.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Fused multiply-add in the accumulator's precision; narrower elements are widened when they are
// packed.
template <class V, class T>
struct FmaEngine {
  using Vec = V;
  using Element = T;
  using Acc = typename V::Scalar;
  using Word = Acc;
  using Words = V;
  static constexpr int kPerWord = 1;

  static Words load(const Word* p) { return V::load(p); }
  static Words broadcast(Word w) { return V::set1(w); }
  static Vec multiply_add(Words a, Words b, Vec c) { return fmadd(a, b, c); }
};

#ifdef __AVX512BF16__
// vdpbf16ps: a word holds two bfloat16 that are neighbours along the contraction; twice the rate of
// float FMA.
struct Bf16DotEngine {
  using Vec = VecF;
  using Element = BFloat16;
  using Acc = float;
  using Word = uint32_t;
  using Words = __m512bh;
  static constexpr int kPerWord = 2;

  static Words load(const Word* p) { return reinterpret_cast<Words>(_mm512_loadu_si512(p)); }
  static Words broadcast(Word w) {
    return reinterpret_cast<Words>(_mm512_set1_epi32(static_cast<int>(w)));
  }
  static Vec multiply_add(Words a, Words b, Vec c) { return {_mm512_dpbf16_ps(c.x, a, b)}; }
};
using Bf16Engine = Bf16DotEngine;

// Sixteen numbers of each of two rows, one row after the other, to words (even, odd).
inline __m512i interleave(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}

// Two rows of floats as words (even, odd).
inline void store_pairs(VecF even, VecF odd, uint32_t* dst) {
  const __m512i rows = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.x, even.x));
  _mm512_storeu_si512(dst, interleave(rows));
}

// The same, and each row by itself; odd_row may be null.
inline void store_pairs_and_rows(VecF even, VecF odd, uint32_t* dst, BFloat16* even_row,
                                 BFloat16* odd_row) {
  const __m512i rows = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.x, even.x));
  _mm512_storeu_si512(dst, interleave(rows));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(even_row), _mm512_castsi512_si256(rows));
  if (odd_row)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd_row), _mm512_extracti64x4_epi64(rows, 1));
}

// Up to 16 numbers of one row; 0 beyond n, and for NaN and Inf if `finite`.
inline __m256i load_numbers(const BFloat16* row, int n, bool finite) {
  const __m256i x = n >= VecF::kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))
                                      : _mm256_maskz_loadu_epi16(VecF::first(n), row);
  if (!finite) return x;
  const __m256i exponent = _mm256_set1_epi16(0x7f80);
  return _mm256_maskz_mov_epi16(_mm256_cmpneq_epi16_mask(_mm256_and_si256(x, exponent), exponent),
                                x);
}

// n <= 16 numbers of two rows as words (even, odd); a null row is zero.
inline void store_row_pairs(const BFloat16* even, const BFloat16* odd, int n, bool finite,
                            uint32_t* dst) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = even ? load_numbers(even, n, finite) : zero;
  const __m256i high = odd ? load_numbers(odd, n, finite) : zero;
  _mm512_storeu_si512(dst, interleave(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
}
#else
using Bf16Engine = FmaEngine<VecF, BFloat16>;
#endif

using F32Engine = FmaEngine<VecF, float>;
using F16Engine = FmaEngine<VecF, Float16>;
using F64Engine = FmaEngine<VecD, double>;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// [begin, end), of positions in a list or of columns.
struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// 0, 1, ..., n - 1 as template arguments; std::index_sequence would bring the standard library's
// inline functions.
template <int... kValues>
struct IntList {};
template <int n, int... kValues>
struct MakeIntList : MakeIntList<n - 1, n - 1, kValues...> {};
template <int... kValues>
struct MakeIntList<0, kValues...> {
  using type = IntList<kValues...>;
};

// Words along a contraction of n elements.
template <class E>
constexpr int64_t words_for(int64_t n) {
  return ceil_div(n, E::kPerWord);
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
