// The softmax's gradient where every query sees every key and nothing was added, capped or dropped:
// two passes over a row in place of four, and in pairs of rows where a word holds two.
#pragma once

#include <cstdint>

#include "cpu/kernels/exp.h"
#include "cpu/kernels/rows.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// A block of rows of scores. Products S and dP become P and scale * dS; of narrow elements p and ds
// end as words, p across rows and ds across and along them.
template <class E>
struct PlainGradient {
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

  Acc *p, *ds;  // [rows, n], `ld` apart
  int64_t ld, rows, n;
  const Acc *top, *sum;  // [rows] of forward
  Acc* delta;            // [rows]
  bool adds_to_delta;    // rowsum(P dP), unless it holds that already
  Exponential<V> exponential;
  Acc scale;
  Word *p_pairs, *ds_pairs;  // [rows / 2, n] where a word holds two, else unused

  void run() const {
    for (int64_t i = 0; i < rows; i += E::kPerWord) {
      const bool two = E::kPerWord == 2 && i + 1 < rows;
      weights(i);
      if (two) weights(i + 1);
      if constexpr (E::kPerWord == 2) {
        gradient_pair(i, two);
      } else {
        gradient_row(i);
      }
    }
  }

 private:
  void weights(int64_t i) const {
    Acc *s = p + i * ld, *dp = ds + i * ld;
    // Keys that fill up the last vector have no weight.
    for (int64_t x = n; x < round_up(n, V::kLanes); ++x) {
      s[x] = minus_infinity<Acc>();
      dp[x] = 0;
    }
    const V row_top = V::set1(top[i]), inverse = V::set1(1 / sum[i]);
    V total = V::zero();
    for (int64_t x = 0; x < n;) {
      const int64_t end = min_of(n, x + kSumChain * V::kLanes);
      V chain = V::zero();
      for (; x < end; x += V::kLanes) {
        const V weight = exponential(V::load(s + x) - row_top) * inverse;
        weight.store(s + x);
        chain = fmadd(weight, V::load(dp + x), chain);
      }
      total = total + chain;
    }
    if (adds_to_delta) delta[i] += reduce_add(total);
  }

  void gradient_row(int64_t i) const {
    const Acc* w = p + i * ld;
    Acc* d = ds + i * ld;
    const V row_delta = V::set1(delta[i]), factor = V::set1(scale);
    for (int64_t x = 0; x < n; x += V::kLanes)
      (V::load(w + x) * factor * (V::load(d + x) - row_delta)).store(d + x);
  }

  void gradient_pair(int64_t i, bool two) const {
    // A missing second row has weight 0.
    const Acc *w0 = p + i * ld, *w1 = w0 + ld;
    Acc *d0 = ds + i * ld, *d1 = d0 + ld;
    Word *p_words = p_pairs + i / 2 * ld, *ds_words = ds_pairs + i / 2 * ld;
    const V delta0 = V::set1(delta[i]), delta1 = V::set1(two ? delta[i + 1] : Acc(0));
    const V factor = V::set1(scale), zero = V::zero();
    for (int64_t x = 0; x < n; x += V::kLanes) {
      const V weight0 = V::load(w0 + x), weight1 = two ? V::load(w1 + x) : zero;
      const V dp1 = two ? V::load(d1 + x) : zero;
      store_pairs(weight0, weight1, p_words + x);
      store_pairs_and_rows(weight0 * factor * (V::load(d0 + x) - delta0),
                           weight1 * factor * (dp1 - delta1), ds_words + x,
                           reinterpret_cast<typename E::Element*>(d0) + x,
                           two ? reinterpret_cast<typename E::Element*>(d1) + x : nullptr);
    }
  }
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
