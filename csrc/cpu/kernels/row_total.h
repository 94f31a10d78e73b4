// What a row's softmax is divided by: the sum over its keys and, where there is one, the sink.
#pragma once

#include "core/attention_problem.h"
#include "cpu/kernels/exp.h"
#include "cpu/kernels/score_terms.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

inline float natural_log(float x) { return __builtin_logf(x); }
inline double natural_log(double x) { return __builtin_log(x); }

// exp(t) of one number t <= 0, the way the vectors do it.
template <class V>
typename V::Scalar exp_scalar(typename V::Scalar t) {
  alignas(64) typename V::Scalar lanes[V::kLanes];
  Exponential<V>{kLog2E}(V::set1(t)).store(lanes);
  return lanes[0];
}

template <class Acc>
struct RowTotal {
  Acc top, sum;  // as AttentionProblem::row_top and row_sum
  Acc lse;
  Acc inverse;  // of the sum over keys and sink, relative to the top over keys alone

  static RowTotal none() { return {minus_infinity<Acc>(), 0, minus_infinity<Acc>(), 0}; }
};

template <class Acc>
Acc sink_of(const AttentionProblem& p, int64_t b, int64_t h) {
  return p.sink ? static_cast<const Acc*>(p.sink)[b * p.sink_stride + h] : minus_infinity<Acc>();
}

// Of plain scores: `top` is the largest product, and there is no sink.
template <class V>
RowTotal<typename V::Scalar> plain_total(const AttentionProblem& p, double scale,
                                         typename V::Scalar top, typename V::Scalar sum) {
  using Acc = typename V::Scalar;
  if (sum == 0) return RowTotal<Acc>::none();
  const Acc lse = p.lse ? top * static_cast<Acc>(scale) + natural_log(sum) : Acc(0);
  return {top, sum, lse, 1 / sum};
}

// `top` and `sum` over the keys that the query sees; sum 0: it sees none.
template <class V>
RowTotal<typename V::Scalar> with_sink(const AttentionProblem& p, int64_t b, int64_t h,
                                       typename V::Scalar top, typename V::Scalar sum) {
  using Acc = typename V::Scalar;
  const Acc sink = sink_of<Acc>(p, b, h);
  if (sum == 0) return {sink, 0, sink, 0};
  if (sink == minus_infinity<Acc>()) return {top, sum, top + natural_log(sum), 1 / sum};
  if (sink > top) {
    const Acc shrink = exp_scalar<V>(top - sink), total = sum * shrink + 1;
    return {sink, total, sink + natural_log(total), shrink / total};
  }
  const Acc total = sum + exp_scalar<V>(sink - top);
  return {top, total, top + natural_log(total), 1 / total};
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
