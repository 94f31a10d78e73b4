// Numbers of every dtype from and to the type that sums are formed in.
#pragma once

#include <cuda_runtime.h>

#include "cuda/ptx.h"

namespace crossmodal::cuda {

template <class Acc>
__device__ inline Acc number(float x) {
  return x;
}
template <class Acc>
__device__ inline Acc number(double x) {
  return x;
}
template <class Acc, class Half>
__device__ inline Acc number(Half x) {
  return to_float(x);
}

template <class T, class Acc>
__device__ inline T rounded(Acc x) {
  if constexpr (sizeof(T) == 2) {
    return T{static_cast<uint16_t>(pack(T{}, x, 0))};
  } else {
    return x;
  }
}

}  // namespace crossmodal::cuda
