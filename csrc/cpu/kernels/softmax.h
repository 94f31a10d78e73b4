// The softmax of a block of queries against a chunk of keys, as many rows at a time as a vector has
// lanes: row maxima and sums come from a transpose, not from a reduction per row.
#pragma once

#include <cstdint>

#include "cpu/kernels/exp.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/scores.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Whether products become exponents by one factor, with nothing added or capped in between: then
// the scores are never written, and the statistics of rows hold the largest product in place of the
// largest score. Forward and backward both ask.
inline bool scores_are_plain(const AttentionProblem& p, const TermKinds& kinds, double scale) {
  return !kinds.dense && !kinds.key_bias && p.softcap <= 0 && is_ordinary(scale) && !p.sink;
}

// Lane i of the result: the largest element of rows[i], or their sum.
inline VecF max_of_rows(VecF rows[VecF::kLanes]) {
  transpose(rows);
#pragma GCC unroll 8
  for (int half = VecF::kLanes / 2; half > 0; half /= 2)
    for (int x = 0; x < half; ++x) rows[x] = max(rows[x], rows[x + half]);
  return rows[0];
}
inline VecF sum_of_rows(VecF rows[VecF::kLanes]) {
  transpose(rows);
#pragma GCC unroll 8
  for (int half = VecF::kLanes / 2; half > 0; half /= 2)
    for (int x = 0; x < half; ++x) rows[x] = rows[x] + rows[x + half];
  return rows[0];
}
inline VecD max_of_rows(VecD rows[VecD::kLanes]) {
  alignas(64) double lanes[VecD::kLanes];
  for (int x = 0; x < VecD::kLanes; ++x) lanes[x] = reduce_max(rows[x]);
  return VecD::load(lanes);
}
inline VecD sum_of_rows(VecD rows[VecD::kLanes]) {
  alignas(64) double lanes[VecD::kLanes];
  for (int x = 0; x < VecD::kLanes; ++x) lanes[x] = reduce_add(rows[x]);
  return VecD::load(lanes);
}

// The largest product of a row, lane by lane; -inf on the lanes of its vectors that hold no key
// seen.
template <class V>
V largest_product(typename V::Scalar* s, Range seen) {
  const V hidden = V::set1(minus_infinity<typename V::Scalar>());
  V a = hidden, b = hidden;
  int64_t x = round_down(seen.begin, V::kLanes);
  if (x < seen.begin) {
    a = keep_first(hidden, static_cast<int>(seen.begin - x), V::load(s + x));
    if (seen.end - x < V::kLanes) a = keep_first(a, static_cast<int>(seen.end - x), hidden);
    a.store(s + x);
    x += V::kLanes;
  }
  for (; x + 2 * V::kLanes <= seen.end; x += 2 * V::kLanes) {
    a = max(a, V::load(s + x));
    b = max(b, V::load(s + x + V::kLanes));
  }
  for (; x < seen.end; x += V::kLanes) {
    V last = V::load(s + x);
    if (seen.end - x < V::kLanes) {
      last = keep_first(last, static_cast<int>(seen.end - x), hidden);
      last.store(s + x);
    }
    a = max(a, last);
  }
  return max(a, b);
}

// The same of the first n rows; the other lanes hold anything finite. Few rows are reduced one by
// one.
constexpr int kFewRows = 4;

template <class V>
V max_of_rows(V rows[V::kLanes], int n) {
  if (n > kFewRows) return max_of_rows(rows);
  alignas(64) typename V::Scalar lanes[V::kLanes] = {};
  for (int x = 0; x < n; ++x) lanes[x] = reduce_max(rows[x]);
  return V::load(lanes);
}
template <class V>
V sum_of_rows(V rows[V::kLanes], int n) {
  if (n > kFewRows) return sum_of_rows(rows);
  alignas(64) typename V::Scalar lanes[V::kLanes] = {};
  for (int x = 0; x < n; ++x) lanes[x] = reduce_add(rows[x]);
  return V::load(lanes);
}

// s[x] = exponential(s[x] - top) on the whole vectors of `seen`, whose other lanes hold -inf
// before and 0 after; as floats, or as words in place, for the operand of P V. Returns the sum,
// lane by lane.
template <class E, bool kWords, class V = typename E::Vec>
V exponentiate(typename V::Scalar* s, Range seen, V top, const Exponential<V>& exponential) {
  const auto step = [&](int64_t x) {
    const V e = exponential(V::load(s + x) - top);
    if constexpr (kWords && E::kPerWord == 2) {
      e.store(reinterpret_cast<BFloat16*>(s) + x);
    } else {
      e.store(s + x);
    }
    return e;
  };
  V total = V::zero();
  int64_t x = round_down(seen.begin, V::kLanes);
  while (x < seen.end) {
    const int64_t end = min_of(seen.end, x + kSumChain * V::kLanes);
    V even = V::zero(), odd = V::zero();
    for (; x + V::kLanes < end; x += 2 * V::kLanes) {
      even = even + step(x);
      odd = odd + step(x + V::kLanes);
    }
    if (x < end) {
      even = even + step(x);
      x += V::kLanes;
    }
    total = total + (even + odd);
  }
  return total;
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
