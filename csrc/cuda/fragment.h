// Where the accumulators of a lane stand in the 16 x (8 * kTiles) block of its warp.
#pragma once

#include <cuda_runtime.h>

namespace crossmodal::cuda {

// Calls fn(element, row, column) for each accumulator of this lane, rows and columns counted from
// the block's first.
template <class Acc, int kTiles, class Fn>
__device__ __forceinline__ void for_each_element(Acc (&c)[kTiles][4], Fn fn) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) fn(c[t][e], lane / 4 + e / 2 * 8, t * 8 + lane % 4 * 2 + e % 2);
}

template <class Acc, int kTiles>
__device__ __forceinline__ void clear(Acc (&c)[kTiles][4]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[t][e] = 0;
}

// Over the four lanes that share a row.
template <class Acc>
__device__ __forceinline__ Acc sum_of_quad(Acc x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace crossmodal::cuda
