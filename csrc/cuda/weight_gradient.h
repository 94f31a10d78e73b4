// The gradient that reaches the weights themselves when a summary of them, not a fused output, was
// returned: dW of a block of queries and keys, from the summary's gradient.
#pragma once

#include <cuda_runtime.h>

#include "cuda/backward_problem.h"
#include "cuda/scores.h"

namespace crossmodal::cuda {

// out = d loss / d w, where `weights`, of which only entropy's gradient depends, are not 0.
template <class Block, class Acc, int kTiles>
__device__ __forceinline__ void weight_gradient(const BackwardProblem& p, const Block& block,
                                                const Acc (&weights)[kTiles][4],
                                                Acc (&out)[kTiles][4]) {
  const AssociateGradient& g = p.associate;
  const Acc* dweights = static_cast<const Acc*>(g.dweights);
  const int64_t pair = int64_t{block.b} * p.num_heads + block.h, keys = p.total_keys;
  const int offset = key_offset(p, block.keys.source);
  int x = 0;
  block.for_each(out, [&](Acc& value, int i, int j) {
    const Acc weight = weights[x / 4][x % 4];
    ++x;
    value = 0;
    if (weight == 0) return;
    const int64_t row = pair * p.seqlen_q + i;
    switch (g.output) {
      case AssociateOutput::kWeights:
        value = dweights[row * keys + offset + j];
        break;
      case AssociateOutput::kHeadMean:
        value = dweights[(block.b * p.seqlen_q + i) * keys + offset + j] *
                static_cast<Acc>(p.inverse_num_heads);
        break;
      case AssociateOutput::kKeyTotal:
        value = dweights[pair * keys + offset + j];
        break;
      case AssociateOutput::kEntropy:
        value = -dweights[row] * (natural_log(weight) + 1);
        break;
      case AssociateOutput::kTopK:
        for (int64_t t = row * g.topk; t < (row + 1) * g.topk; ++t)
          if (g.indices[t] == offset + j) value = dweights[t];
        break;
    }
  });
}

}  // namespace crossmodal::cuda
