// Backward of short problems: a block owns one (batch, head) and runs the pass over queries, then
// the pass over keys. What the second reads again, queries, dout, keys and values, is in the
// second-level cache by then: memory is read once, where two kernels read it twice.
#pragma once

#include "cuda/attention_bwd_keys.h"
#include "cuda/attention_bwd_queries.h"

namespace crossmodal::cuda {

// Of plain scores: with masks, biases and dropout the two passes together need more registers than
// there are. No key head serves several query heads, and both passes hold whole rows.
template <class E, int kWidth>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    attention_bwd_short_kernel(const __grid_constant__ BackwardProblem p,
                               const __grid_constant__ BackwardTiling tiling,
                               const __grid_constant__ Alignment aligned) {
  const Tiling &queries = tiling.queries, &keys = tiling.keys;
  const int64_t pairs = p.batch * p.num_heads;
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    const int b = static_cast<int>(pair / p.num_heads), h = static_cast<int>(pair % p.num_heads);
    for (int m_begin = 0; m_begin < p.seqlen_q; m_begin += queries.block_m) {
      QueryPass<E, kWidth, true>(p, queries, aligned, b, h, m_begin, 0).run();
      __syncthreads();  // the tile has been read, and its delta is there
    }
    clear_rows_of_no_query<E>(p, b, h);
    for (int s = 0; s < p.num_sources; ++s) {
      const KeySource& source = p.source[s];
      if (!has_key_gradients(source)) continue;
      for (int begin = 0; begin < source.seqlen_k; begin += keys.block_m) {
        KeyPass<E, kWidth, true>(p, keys, aligned, {b, h, 0, {s, begin, keys.block_m}}).run();
        __syncthreads();  // the tile has been read
      }
      clear_rows_of_no_key<E>(p, source, b, h);
    }
  }
}

template <class E, int kWidth>
void launch_attention_bwd_short(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                                void* stream) {
  launch("attention_bwd_short_kernel", attention_bwd_short_kernel<E, kWidth>, p.batch * p.num_heads,
         tiling.queries.warps * kWarp,
         std::max(tiling.queries.shared_bytes, tiling.keys.shared_bytes), stream,
         as_parameter(p, g, workspace), tiling, Alignment(p, g));
}

}  // namespace crossmodal::cuda
