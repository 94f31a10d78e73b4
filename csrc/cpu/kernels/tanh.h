// Hyperbolic tangent, for softcap: near zero as accurate as its argument, since a score far below
// the cap has to come out unchanged.
#pragma once

#include "cpu/kernels/exp.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// tanh(x) / x as a polynomial in x^2 on |x| <= 0.625, interpolated at Chebyshev points: relative
// error 1.5e-10.
inline VecF tanh_over_x(VecF u) {
  VecF p = VecF::set1(0.00212743536f);
  p = fmadd(p, u, VecF::set1(-0.00815785337f));
  p = fmadd(p, u, VecF::set1(0.0216912653f));
  p = fmadd(p, u, VecF::set1(-0.0539445847f));
  p = fmadd(p, u, VecF::set1(0.133331817f));
  p = fmadd(p, u, VecF::set1(-0.333333297f));
  return fmadd(p, u, VecF::set1(1.0f));
}

// Likewise: relative error 1.3e-20, so that rounding is all that is left.
inline VecD tanh_over_x(VecD u) {
  constexpr double c[] = {-2.26298910873141546e-6, 1.17715626609806058e-5,
                          -3.65987077313159688e-5, 9.57327993712891743e-5,
                          -2.38762736098507948e-4, 5.89946790146735320e-4,
                          -1.45582178345975778e-3, 3.59212665693228541e-3,
                          -8.86323542702312672e-3, 2.18694885311716985e-2,
                          -5.39682539681090522e-2, 1.33333333333331130e-1,
                          -3.33333333333333320e-1, 1.0};
  VecD p = VecD::set1(c[0]);
  for (int i = 1; i < 14; ++i) p = fmadd(p, u, VecD::set1(c[i]));
  return p;
}

// c * tanh(s / c), and the slope of it at s. Below 0.625 c the score itself is scaled, so that
// neither the division nor a multiplication by c rounds it once more.
template <class V>
struct Capped {
  V value, slope;
};

template <class V>
Capped<V> soft_cap(V score, V cap) {
  using Acc = typename V::Scalar;
  const V zero = V::zero(), one = V::set1(Acc(1));
  const V x = score / cap, size = max(zero - x, x);  // NaN stays
  const V e = Exponential<V>{2 * kLog2E}(zero - size);
  const V far = one - (e + e) / (one + e);
  const V ratio = tanh_over_x(x * x), limit = V::set1(Acc(0.625));
  const V t = select_less(size, limit, size * ratio, far);
  const V beyond = select_less(x, zero, zero - cap * far, cap * far);
  return {select_less(size, limit, score * ratio, beyond), one - t * t};
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
