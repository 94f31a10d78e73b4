// Functions of one number, float or double.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "cuda/ptx.h"

namespace crossmodal::cuda {

constexpr double kLog2E = 1.4426950408889634;

template <class Acc>
__host__ __device__ constexpr Acc minus_infinity() {
  return -__builtin_huge_val();
}

__device__ inline float exp2_of(float x) { return exp2_fast(x); }
__device__ inline double exp2_of(double x) { return ::exp2(x); }
__device__ inline float natural_log(float x) { return ::logf(x); }
__device__ inline double natural_log(double x) { return ::log(x); }

// 1 / x for x from the smallest normal number up: a step of Newton's after the approximation rounds
// as well as a division, which calls a function that takes registers from its caller.
__device__ inline float reciprocal(float x) {
  const float r = reciprocal_fast(x);
  return ::fmaf(r, ::fmaf(-x, r, 1.0f), r);
}
__device__ inline double reciprocal(double x) {
  double r = reciprocal_fast(static_cast<float>(x));
  r = ::fma(r, ::fma(-x, r, 1.0), r);
  r = ::fma(r, ::fma(-x, r, 1.0), r);
  return ::fma(r, ::fma(-x, r, 1.0), r);
}

// The larger one; NaN only if both are.
__device__ inline float larger(float a, float b) { return ::fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return ::fmax(a, b); }

}  // namespace crossmodal::cuda
