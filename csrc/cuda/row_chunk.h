// Sixteen bytes of a row, as a lane holds them, and the numbers in them.
#pragma once

#include <cuda_runtime.h>

#include "cuda/number.h"
#include "cuda/tile.h"

namespace crossmodal::cuda {

template <class T, class Acc>
__device__ __forceinline__ void chunk_to_numbers(const Chunk& chunk, Acc* x) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int w = 0; w < 4; ++w) unpack(T{}, chunk.words[w], x[2 * w], x[2 * w + 1]);
  } else {
    constexpr int kPerChunk = 16 / sizeof(T);
    alignas(16) T values[kPerChunk];
    *reinterpret_cast<Chunk*>(values) = chunk;
#pragma unroll
    for (int e = 0; e < kPerChunk; ++e) x[e] = values[e];
  }
}

// Rounded, times a factor.
template <class E>
__device__ __forceinline__ Chunk numbers_to_chunk(const typename E::Acc* x,
                                                  typename E::Acc factor) {
  using T = typename E::Element;
  constexpr int kPerChunk = 16 / sizeof(T);
  alignas(16) T values[kPerChunk];
#pragma unroll
  for (int e = 0; e < kPerChunk; e += 2)
    E::store_pair(values + e, x[e] * factor, x[e + 1] * factor);
  return *reinterpret_cast<const Chunk*>(values);
}

template <class Acc, int kCount>
__device__ __forceinline__ Acc dot(const Acc (&x)[kCount], const Acc (&y)[kCount]) {
  Acc sum = 0;
#pragma unroll
  for (int e = 0; e < kCount; ++e) sum += x[e] * y[e];
  return sum;
}

}  // namespace crossmodal::cuda
