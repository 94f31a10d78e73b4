// What a row's softmax is divided by: the sum over its keys and, where there is one, the sink.
#pragma once

#include <cuda_runtime.h>

#include "cuda/math.h"
#include "cuda/problem.h"

namespace crossmodal::cuda {

template <class Acc>
struct RowTotal {
  Acc top, sum;  // as AttentionProblem::row_top and row_sum
  Acc lse;
  Acc inverse;  // of the sum over keys and sink, relative to the top over keys alone

  __device__ static RowTotal none() { return {minus_infinity<Acc>(), 0, minus_infinity<Acc>(), 0}; }
};

template <class Acc>
__device__ inline Acc sink_of(const Problem& p, int64_t b, int64_t h) {
  return p.sink ? static_cast<const Acc*>(p.sink)[b * p.sink_stride + h] : minus_infinity<Acc>();
}

// `top` and `sum` over the keys that the query sees; sum 0: it sees none. Of plain scores, `top` is
// the largest product, and there is no sink.
template <bool kPlain, class Acc>
__device__ inline RowTotal<Acc> row_total(const Problem& p, int64_t b, int64_t h, Acc top,
                                          Acc sum) {
  constexpr Acc kFactor = static_cast<Acc>(kLog2E);
  if constexpr (kPlain) {
    if (sum == 0) return RowTotal<Acc>::none();
    // A logarithm is as long as all the rest: who wants none passes by it.
    const Acc lse = p.lse ? top * static_cast<Acc>(p.scale) + natural_log(sum) : Acc(0);
    return {top, sum, lse, reciprocal(sum)};
  }
  const Acc sink = sink_of<Acc>(p, b, h);
  if (sum == 0) return {sink, 0, sink, 0};
  if (sink == minus_infinity<Acc>()) return {top, sum, top + natural_log(sum), reciprocal(sum)};
  if (sink > top) {
    const Acc shrink = exp2_of((top - sink) * kFactor), total = sum * shrink + 1;
    return {sink, total, sink + natural_log(total), shrink * reciprocal(total)};
  }
  const Acc total = sum + exp2_of((sink - top) * kFactor);
  return {top, total, top + natural_log(total), reciprocal(total)};
}

template <class Acc>
__device__ inline RowTotal<Acc> row_total(const Problem& p, bool plain, int64_t b, int64_t h,
                                          Acc top, Acc sum) {
  return plain ? row_total<true>(p, b, h, top, sum) : row_total<false>(p, b, h, top, sum);
}

}  // namespace crossmodal::cuda
