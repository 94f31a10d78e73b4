// The gradient that reaches the weights themselves when a summary of them, not a fused output, was
// returned: dW of a block of queries and keys, from the summary's gradient.
#pragma once

#include <cuda_runtime.h>

#include "cuda/backward_problem.h"
#include "cuda/scores.h"

namespace crossmodal::cuda {

// Of the k strongest links of each row: a weight that is none of them gets 0.
template <class Block, class Acc, int kTiles>
__device__ __forceinline__ void link_gradient(const BackwardProblem& p, const Block& block,
                                              const Acc (&weights)[kTiles][4],
                                              Acc (&out)[kTiles][4]) {
  const AssociateGradient& g = p.associate;
  const Acc* dweights = static_cast<const Acc*>(g.dweights);
  const int offset = key_offset(p, block.keys.source);
  const int64_t stride[4] = {p.num_heads * p.seqlen_q * g.topk, p.seqlen_q * g.topk, g.topk, 0};
  clear(out);
  for (int64_t link = 0; link < g.topk; ++link) {
    int x = 0;
    block.for_each_of(out, stride, [&](Acc& value, int, int j, int64_t at) {
      const bool is_seen = weights[x / 4][x % 4] != 0;
      ++x;
      if (is_seen && g.indices[at + link] == offset + j) value = dweights[at + link];
    });
  }
}

// out = d loss / d w, where `weights`, of which only entropy's gradient depends, are not 0. But for
// links, what came back stands in a tensor by query, by key or by both.
template <class Block, class Acc, int kTiles>
__device__ __forceinline__ void weight_gradient(const BackwardProblem& p, const Block& block,
                                                const Acc (&weights)[kTiles][4],
                                                Acc (&out)[kTiles][4]) {
  const AssociateGradient& g = p.associate;
  if (g.output == AssociateOutput::kTopK) return link_gradient(p, block, weights, out);
  const Acc* dweights = static_cast<const Acc*>(g.dweights);
  const bool by_query = g.output != AssociateOutput::kKeyTotal;
  const bool by_key = g.output != AssociateOutput::kEntropy;
  const bool by_head = g.output != AssociateOutput::kHeadMean;
  const int64_t keys = by_key ? p.total_keys : 1, rows = by_query ? p.seqlen_q : 1;
  const int64_t stride[4] = {(by_head ? p.num_heads : 1) * rows * keys, by_head ? rows * keys : 0,
                             by_query ? keys : 0, by_key ? 1 : 0};
  const int64_t offset = by_key ? key_offset(p, block.keys.source) : 0;
  const Acc factor = by_head ? Acc(1) : static_cast<Acc>(p.inverse_num_heads);
  int x = 0;
  block.for_each_of(out, stride, [&](Acc& value, int, int, int64_t at) {
    const bool is_seen = weights[x / 4][x % 4] != 0;
    ++x;
    value = is_seen ? factor * dweights[at + offset] : Acc(0);
  });
  if (by_key) return;
  // Entropy: -sum w ln w.
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (weights[t][e] != 0) out[t][e] *= -(natural_log(weights[t][e]) + 1);
}

}  // namespace crossmodal::cuda
