// What the double backward of a softmax has to know of a row before anything flows back through it:
// means and a covariance under the weights, over keys that come in parts.
#pragma once

#include <cstdint>

#include "cpu/kernels/rows.h"
#include "cpu/kernels/scores.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class Acc>
struct RowMoments {
  Acc weight, dp, t;  // sums of P, P dP and P T
  Acc covariance;     // of P (dP - mean) (T - mean): the product of sums would drown it
  Acc u;              // of P U

  // Joins the sums over other keys (Chan, Golub & LeVeque, 1983).
  void add(const RowMoments& part) {
    if (part.weight == 0) return;
    if (weight != 0) {
      const Acc between =
          (dp / weight - part.dp / part.weight) * (t / weight - part.t / part.weight);
      covariance += weight * (part.weight / (weight + part.weight)) * between;
    }
    weight += part.weight;
    dp += part.dp;
    t += part.t;
    covariance += part.covariance;
    u += part.u;
  }
};

// Over the keys seen; where the weight is 0 the rest may be anything.
template <class V>
RowMoments<typename V::Scalar> moments_of(const typename V::Scalar* p, const typename V::Scalar* dp,
                                          const typename V::Scalar* t, const typename V::Scalar* u,
                                          Range seen) {
  const V zero = V::zero();
  const int64_t first = round_down(seen.begin, V::kLanes), chain = kSumChain * V::kLanes;
  V weight = zero, sum_dp = zero, sum_t = zero;
  for (int64_t begin = first; begin < seen.end; begin += chain) {
    V w = zero, d = zero, s = zero;
    for (int64_t x = begin; x < min_of(seen.end, begin + chain); x += V::kLanes) {
      const V here = V::load(p + x);
      w = w + here;
      d = d + select_equal(here, zero, zero, here * V::load(dp + x));
      s = s + select_equal(here, zero, zero, here * V::load(t + x));
    }
    weight = weight + w;
    sum_dp = sum_dp + d;
    sum_t = sum_t + s;
  }
  RowMoments<typename V::Scalar> moments{reduce_add(weight), reduce_add(sum_dp), reduce_add(sum_t),
                                         0, 0};
  if (moments.weight == 0) return moments;
  const V mean_dp = V::set1(moments.dp / moments.weight),
          mean_t = V::set1(moments.t / moments.weight);
  V covariance = zero, sum_u = zero;
  for (int64_t begin = first; begin < seen.end; begin += chain) {
    V c = zero, s = zero;
    for (int64_t x = begin; x < min_of(seen.end, begin + chain); x += V::kLanes) {
      const V here = V::load(p + x);
      const V product = (V::load(dp + x) - mean_dp) * (V::load(t + x) - mean_t);
      c = c + select_equal(here, zero, zero, here * product);
      s = s + select_equal(here, zero, zero, here * V::load(u + x));
    }
    covariance = covariance + c;
    sum_u = sum_u + s;
  }
  moments.covariance = reduce_add(covariance);
  moments.u = reduce_add(sum_u);
  return moments;
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
