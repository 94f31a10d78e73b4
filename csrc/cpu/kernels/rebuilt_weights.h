// The weights of one query, formed again from its products and from what forward left of its row.
#pragma once

#include <cstdint>

#include "cpu/kernels/exp.h"
#include "cpu/kernels/scores.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class V>
class RebuiltWeights {
  using Acc = typename V::Scalar;

 public:
  // `plain`: products become exponents by `scale` alone, and statistics hold products.
  RebuiltWeights(const AttentionProblem& p, bool plain, double scale)
      : p_(p), plain_(plain), exponential_(plain ? kLog2E * scale : kLog2E) {}

  // s: products of query i -> weights, 0 on the lanes of the vectors that hold no key seen; as
  // forward formed them, so that they sum to 1. `row` is the query's place in the statistics. With
  // a soft cap, slope[x] is its derivative.
  void run(int64_t i, int64_t row, Acc* s, Range seen, ChunkBias<Acc>& bias, Acc* slope) const {
    if (plain_) {
      hide_other_lanes(s, seen);
    } else {
      products_to_scores<V>(p_, s, seen, bias.for_query(i), slope);
    }
    const V zero = V::zero();
    const V top = V::set1(static_cast<const Acc*>(p_.row_top)[row]);
    const V inverse = V::set1(1 / static_cast<const Acc*>(p_.row_sum)[row]);
    for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
      const V e = exponential_(V::load(s + x) - top);
      // What is hidden stays 0 even in a row whose sum is NaN.
      select_equal(e, zero, zero, e * inverse).store(s + x);
    }
  }

 private:
  // -inf on the lanes of the vectors that hold no key seen.
  static void hide_other_lanes(Acc* s, Range seen) {
    for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.begin; ++x)
      s[x] = minus_infinity<Acc>();
    for (int64_t x = seen.end; x < round_up(seen.end, V::kLanes); ++x) s[x] = minus_infinity<Acc>();
  }

  const AttentionProblem& p_;
  bool plain_;
  Exponential<V> exponential_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
