// What the passes of backward share. Weights are rebuilt from the maximum and the sum of each row:
//
//   P  = exp(S - top) / sum,  dP = dropped(dout V^T) or what reached the weights themselves
//   dS = P * (dP + dmass - delta),  delta = sum_j P dP + rowsum(dmass * mass) - dlse
//
// Three passes, each of which owns what it writes and sums it in a fixed order, so that gradients
// are repeatable without atomics: queries (delta, then dQ = dS K), keys (dV = P^T dout, dK = dS^T
// Q) and terms whose gradient is summed over samples or heads. (FlashAttention-2, Dao, 2023, makes
// one pass and adds to dQ atomically, five products for our seven.)
#pragma once

#include <cuda_runtime.h>

#include "cuda/alignment.h"
#include "cuda/attention_launch.h"
#include "cuda/dropout.h"
#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/row_total.h"
#include "cuda/scores.h"
#include "cuda/softmax.h"
#include "cuda/weight_gradient.h"

namespace crossmodal::cuda {

// One query, as the rebuilt weights need it: the pass over queries leaves it to the others.
template <class Acc>
struct alignas(4 * sizeof(Acc)) RowState {
  Acc top, inverse;  // of its statistics, see RowDivisor
  Acc delta;
  Acc dmass;  // of the source of the keys at hand
};

// How exponentials relative to the top become weights: by a product, or, where scores are plain and
// of half precision, by what is added to their exponents, one instruction for a product and two
// comparisons.
template <bool kInExponent, class Acc>
struct RowDivisor {
  // What RowState::inverse holds of a row that sees nothing, and of one with this sum.
  __device__ static constexpr Acc nothing() { return kInExponent ? minus_infinity<Acc>() : Acc(0); }
  __device__ static Acc of(Acc sum) {
    if constexpr (kInExponent) return -log2_fast(sum);
    return reciprocal(sum);
  }
};

// Query i of (b, h). A query that sees nothing has row_sum 0 and takes no part: its rows and its
// dout may hold anything.
template <class Acc>
__device__ inline RowState<Acc> row_state(const BackwardProblem& p, int b, int h,
                                          const Rows& queries, int i, int source, Acc nothing) {
  if (i >= queries.count) return {0, nothing, 0, 0};
  const int64_t at = row_index(p, b, h, queries, i);
  RowState<Acc> row = static_cast<const RowState<Acc>*>(p.rows)[at];
  if (p.gradient.dmass && row.inverse != nothing)
    row.dmass = static_cast<const Acc*>(p.gradient.dmass)[at * p.num_sources + source];
  return row;
}

template <class Acc>
__device__ inline bool is_dead(const BackwardProblem& p, int b, int h, const Rows& queries, int i) {
  return i >= queries.count ||
         static_cast<const Acc*>(p.row_sum)[row_index(p, b, h, queries, i)] == 0;
}

// Blocks to a multiprocessor that registers have to leave room for.
template <class E, int kWidth, bool kPlain>
constexpr int backward_blocks() {
  return sizeof(typename E::Element) == 2 && kWidth <= 64 && kPlain ? 3 : 2;
}

// The block of weights and gradients that a warp works on. state(t, e) is the RowState of an
// accumulator's query.
template <class T, class Acc, bool kPlain, int kTiles>
struct WeightBlock {
  static constexpr bool kInExponent = kPlain && sizeof(T) == 2;
  using Divisor = RowDivisor<kInExponent, Acc>;

  Acc weight[kTiles][4];    // products, then weights
  Acc gradient[kTiles][4];  // dout V^T, then dP, then dS
  Acc slope[kPlain ? 1 : kTiles][4];
  uint32_t dropped = 0;

  // From products to weights and dP.
  template <class Block, class State>
  __device__ __forceinline__ void rebuild(const BackwardProblem& p, const Band& band,
                                          const Block& block, const Dropout<Acc>& dropout,
                                          State state) {
    const Acc factor = exponent_factor<Acc, kPlain>(p);
    if constexpr (kInExponent) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const RowState<Acc> row = state(t, e);
          weight[t][e] = exp2_of((weight[t][e] - row.top) * factor + row.inverse);
        }
      // Rows of keys that do not exist are sums of their own: they are left out in the end.
      if constexpr (Block::kUpright) block.replace_missing_keys(weight, Acc(0));
      block.replace_hidden(band, weight, Acc(0));
      // The band lets queries that do not exist see keys that no other sees, which may be NaN.
      if constexpr (!Block::kUpright)
        if (!band.open)
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (state(t, e).inverse == Divisor::nothing()) weight[t][e] = 0;
      return;
    }
    products_to_scores<kPlain>(p, band, block, weight, [&](int t, int e, Acc s) {
      if constexpr (!kPlain) slope[t][e] = s;
    });
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowState<Acc> row = state(t, e);
        const Acc exponential = exp2_of((weight[t][e] - row.top) * factor);
        // What is hidden stays 0 even in a row whose sum is NaN; in a row of nothing all is.
        const bool none = exponential == 0 || row.inverse == 0;
        weight[t][e] = none ? Acc(0) : exponential * row.inverse;
      }
    if constexpr (!kPlain) {
      if (p.gradient.associate) weight_gradient(p, block, weight, gradient);
      if (dropout.active()) {
        dropped = dropout.template dropped<kTiles>(p, block);
        drop(gradient, dropped);
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e) gradient[t][e] *= dropout.kept();
      }
    }
  }

  // This accumulator's share of delta.
  __device__ __forceinline__ Acc weighted(int t, int e, const RowState<Acc>& row) const {
    return weight[t][e] == 0 ? Acc(0) : weight[t][e] * (gradient[t][e] + row.dmass);
  }

  // dP -> the gradient of scores, as biases receive it.
  template <class State>
  __device__ __forceinline__ void to_scores(const Band& band, State state) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowState<Acc> row = state(t, e);
        const Acc product = weight[t][e] * (gradient[t][e] - (row.delta - row.dmass));
        // By choice, not by 0 * gradient: behind a mask the gradient may be NaN.
        gradient[t][e] = !kInExponent && weight[t][e] == 0 ? Acc(0) : product;
      }
    if constexpr (kInExponent)
      if (!band.open)
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (weight[t][e] == 0) gradient[t][e] = 0;
  }

  // The gradient of scores -> that of products, but for the scale.
  __device__ __forceinline__ void to_products(const BackwardProblem& p) {
    if constexpr (!kPlain) {
      if (p.softcap <= 0) return;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          gradient[t][e] = weight[t][e] == 0 ? Acc(0) : gradient[t][e] * slope[t][e];
    }
  }
};

// Whether a term's gradient has an element for each query and key, and whether those are sums over
// samples or heads.
__device__ __host__ inline bool is_dense(const ScoreTerm& term) {
  return term.grad_stride[2] != 0 && term.grad_stride[3] != 0;
}
__device__ __host__ inline bool is_summed(const AttentionProblem& p, const ScoreTerm& term) {
  return (term.grad_stride[0] == 0 && p.batch > 1) || (term.grad_stride[1] == 0 && p.num_heads > 1);
}

}  // namespace crossmodal::cuda
