// 2^(factor * x) <= 1, the only transcendental function that attention needs.
#pragma once

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Minimax polynomial of 2^f on [-0.5, 0.5] with constant term 1, relative error 2.0e-9: below half
// an ulp of float, so that the argument's own rounding dominates.
inline VecF exp2_fraction(VecF f) {
  VecF p = VecF::set1(1.535335909e-04f);
  p = fmadd(p, f, VecF::set1(1.339887542e-03f));
  p = fmadd(p, f, VecF::set1(9.618437377e-03f));
  p = fmadd(p, f, VecF::set1(5.550332468e-02f));
  p = fmadd(p, f, VecF::set1(2.402264791e-01f));
  p = fmadd(p, f, VecF::set1(6.931472029e-01f));
  return fmadd(p, f, VecF::set1(1.0f));
}

// Taylor series to degree 13: the first term left out is 4e-18 on [-0.5, 0.5].
inline VecD exp2_fraction(VecD f) {
  constexpr double c[] = {1.36914888539041241e-12, 2.56784359934881958e-11,
                          4.44553827187081007e-10, 7.05491162080112088e-09,
                          1.01780860092396960e-07, 1.32154867901443053e-06,
                          1.52527338040598377e-05, 1.54035303933816061e-04,
                          1.33335581464284411e-03, 9.61812910762847688e-03,
                          5.55041086648215762e-02, 2.40226506959100694e-01,
                          6.93147180559945286e-01, 1.0};
  VecD p = VecD::set1(c[0]);
  for (int i = 1; i < 14; ++i) p = fmadd(p, f, VecD::set1(c[i]));
  return p;
}

inline float exp2_floor(VecF) { return -200.0f; }
inline double exp2_floor(VecD) { return -1200.0; }

// x -> 2^(factor * x) for factor * x <= 0 (slightly above is fine), factor > 0. -inf gives exactly
// 0, NaN stays NaN.
template <class V>
class Exponential {
  using Acc = typename V::Scalar;

 public:
  explicit Exponential(double factor)
      : factor_(V::set1(static_cast<Acc>(factor))),
        lowest_(V::set1(exp2_floor(V{}) / static_cast<Acc>(factor))) {}

  V operator()(V x) const {
    // Keeps -inf - (-inf) out of the fraction.
    x = max(lowest_, x);
    const V n = round_nearest(x * factor_);
    // Fused: the product is rounded once it is small, not before.
    return scale_by_power(exp2_fraction(fmsub(x, factor_, n)), n);
  }

 private:
  V factor_, lowest_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
