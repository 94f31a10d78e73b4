// The online softmax of Milakov & Gimelshein (2018) over blocks of keys, of the two rows that a
// lane holds parts of.
#pragma once

#include <cuda_runtime.h>

#include "cuda/fragment.h"
#include "cuda/math.h"

namespace crossmodal::cuda {

// A long sum that keeps what its additions round off (Kahan, 1965): equal terms round in one
// direction, and thousands of keys make a chain of hundreds.
template <class Acc>
struct LongSum {
  Acc value = 0, lost = 0;

  // value * correction + x.
  __device__ __forceinline__ void rescale_and_add(Acc correction, Acc x) {
    const Acc before = value * correction, term = x - lost * correction;
    value = before + term;
    lost = (value - before) - term;
  }
};

template <class Acc>
struct OnlineSoftmax {
  Acc top[2] = {minus_infinity<Acc>(), minus_infinity<Acc>()};
  LongSum<Acc> sum[2];  // this lane's share of it

  // s: scores -> exponentials relative to the running maxima. block_sum: this lane's share of each
  // row's sum over the block; correction: what earlier blocks are to be multiplied with.
  template <int kTiles>
  __device__ __forceinline__ void add(Acc (&s)[kTiles][4], Acc factor, Acc (&block_sum)[2],
                                      Acc (&correction)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Acc largest = top[r];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        largest = larger(largest, larger(s[t][2 * r], s[t][2 * r + 1]));
      largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      // Nothing visible yet: exponents of -inf - 0 give exact zeros, where -inf - (-inf) would give
      // NaN.
      const Acc shift = largest == minus_infinity<Acc>() ? Acc(0) : largest;
      correction[r] = exp2_of((top[r] - shift) * factor);
      top[r] = largest;
      Acc total = 0;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          Acc& x = s[t][2 * r + e];
          x = exp2_of((x - shift) * factor);
          total += x;
        }
      block_sum[r] = total;
      sum[r].rescale_and_add(correction[r], total);
    }
  }
};

}  // namespace crossmodal::cuda
