// The soft cap, by the CPU's formulas: near zero the score itself is scaled, since a score far
// below the cap has to come out unchanged.
#pragma once

#include <cuda_runtime.h>

#include "cuda/math.h"

namespace crossmodal::cuda {

// tanh(x) / x as a polynomial in x^2 on |x| <= 0.625, interpolated at Chebyshev points: relative
// error 1.5e-10, and 1.3e-20 for double.
__device__ inline float tanh_over_x(float u) {
  float p = 0.00212743536f;
  p = ::fmaf(p, u, -0.00815785337f);
  p = ::fmaf(p, u, 0.0216912653f);
  p = ::fmaf(p, u, -0.0539445847f);
  p = ::fmaf(p, u, 0.133331817f);
  p = ::fmaf(p, u, -0.333333297f);
  return ::fmaf(p, u, 1.0f);
}
__device__ inline double tanh_over_x(double u) {
  constexpr double c[] = {-2.26298910873141546e-6, 1.17715626609806058e-5,
                          -3.65987077313159688e-5, 9.57327993712891743e-5,
                          -2.38762736098507948e-4, 5.89946790146735320e-4,
                          -1.45582178345975778e-3, 3.59212665693228541e-3,
                          -8.86323542702312672e-3, 2.18694885311716985e-2,
                          -5.39682539681090522e-2, 1.33333333333331130e-1,
                          -3.33333333333333320e-1, 1.0};
  double p = c[0];
#pragma unroll
  for (int i = 1; i < 14; ++i) p = ::fma(p, u, c[i]);
  return p;
}

// cap * tanh(score / cap), and its slope at score.
template <class Acc>
__device__ inline Acc soft_cap(Acc score, Acc cap, Acc inverse_cap, Acc* slope) {
  const Acc x = score * inverse_cap, size = x < 0 ? -x : x;
  const Acc e = exp2_of(size * static_cast<Acc>(-2 * kLog2E));
  const Acc far = 1 - (e + e) * reciprocal(1 + e), ratio = tanh_over_x(x * x);
  const bool near = size < Acc(0.625);
  const Acc t = near ? size * ratio : far;
  *slope = 1 - t * t;
  if (near) return score * ratio;
  return x < 0 ? -cap * far : cap * far;  // NaN stays: it is not near
}

}  // namespace crossmodal::cuda
