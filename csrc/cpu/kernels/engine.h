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

// Two rows of floats as words (even, odd).
inline void store_pairs(VecF even, VecF odd, uint32_t* dst) {
  const __m512i low = _mm512_cvtepu16_epi32(even.narrow());
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd.narrow()), 16);
  _mm512_storeu_si512(dst, _mm512_or_si512(low, high));
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
