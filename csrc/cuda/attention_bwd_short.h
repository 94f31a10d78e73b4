// Backward of short problems: a block owns a sample's head of keys with all query heads that share
// it, and runs the pass over queries, then the pass over keys. What the second reads again,
// queries, dout, keys and values, is in the second-level cache by then: memory is read once, where
// two kernels read it twice.
#pragma once

#include "cuda/attention_bwd_keys.h"
#include "cuda/attention_bwd_queries.h"

namespace crossmodal::cuda {

// group: query heads to a head of keys, of every source. Both passes hold whole rows. Sample and
// head are the block's numbers, which need not be kept: every register counts here.
template <class E, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMostWarps * 32, backward_blocks<E, kWidth, kPlain>())
    attention_bwd_short_kernel(const __grid_constant__ BackwardProblem p,
                               const __grid_constant__ BackwardTiling tiling,
                               const __grid_constant__ Alignment aligned, int group) {
  const Tiling &queries = tiling.queries, &keys = tiling.keys;
  const int b = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  for (int h = head * group; h < (head + 1) * group; ++h) {
    for (int m_begin = 0; m_begin < p.seqlen_q; m_begin += queries.block_m) {
      QueryPass<E, kWidth, kPlain>(p, queries, aligned, b, h, m_begin, 0).run();
      __syncthreads();  // the tile has been read, and its delta is there
    }
    clear_rows_of_no_query<E>(p, b, h);
  }
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.source[s];
    if (!has_key_gradients(source)) continue;
    for (int begin = -keys_before_source(p, key_offset(p, s)); begin < source.seqlen_k;
         begin += keys.block_m) {
      KeyPass<E, kWidth, kPlain>(p, keys, aligned, {b, head, 0, {s, begin, keys.block_m}}).run();
      __syncthreads();  // the tile has been read
    }
    clear_rows_of_no_key<E>(p, source, b, head);
  }
}

template <class E, int kWidth>
void launch_attention_bwd_short(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                                int group, void* stream) {
  auto kernel = attention_bwd_short_kernel<E, kWidth, true>;
  if constexpr (kWidth <= widest_short_backward(false))
    if (!scores_are_plain(p) || g.associate) kernel = attention_bwd_short_kernel<E, kWidth, false>;
  const dim3 grid(static_cast<unsigned>(p.batch), static_cast<unsigned>(p.num_heads / group));
  launch_grid("attention_bwd_short_kernel", kernel, grid, tiling.queries.warps * kWarp,
              std::max(tiling.queries.shared_bytes, tiling.keys.shared_bytes), stream,
              as_parameter(p, g, workspace), tiling, Alignment(p, g), group);
}

}  // namespace crossmodal::cuda
