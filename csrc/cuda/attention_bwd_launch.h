// Enqueues the passes of backward; included by the source files of attention_bwd/, one for each
// engine and width.
#pragma once

#include "cuda/attention_bwd_keys.h"
#include "cuda/attention_bwd_queries.h"
#include "cuda/attention_bwd_terms.h"

namespace crossmodal::cuda {

template <class E, int kWidth>
void launch_attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                          const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                          void* stream) {
  const BackwardProblem problem = as_parameter(p, g, workspace);
  const Alignment aligned(p, g);
  const bool plain = scores_are_plain(p) && g.associate == nullptr;

  const Tiling& queries = tiling.queries;
  const int64_t query_tiles =
      p.batch * p.num_heads * ceil_div(p.seqlen_q, queries.block_m) * queries.chunks;
  launch("attention_bwd_queries_kernel",
         plain ? attention_bwd_queries_kernel<E, kWidth, true>
               : attention_bwd_queries_kernel<E, kWidth, false>,
         query_tiles, queries.warps * kWarp, queries.shared_bytes, stream, problem, queries,
         aligned);

  const Tiling& keys = tiling.keys;
  int64_t key_blocks = 0;
  int offset = 0;
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.sources[s];
    key_blocks += key_tiles(p, source, offset, keys.block_m) * source.num_heads_k * p.batch;
    offset += static_cast<int>(source.seqlen_k);
  }
  key_blocks *= keys.chunks;
  launch("attention_bwd_keys_kernel",
         plain ? attention_bwd_keys_kernel<E, kWidth, true>
               : attention_bwd_keys_kernel<E, kWidth, false>,
         key_blocks, keys.warps * kWarp, keys.shared_bytes, stream, problem, keys, aligned,
         key_blocks);
}

template <class E, int kWidth>
void launch_attention_bwd_terms(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const Tiling& tiling,
                                void* stream) {
  const int block_n = backward_block(size_of(p.dtype));
  int64_t blocks = 0;
  for (int s = 0; s < p.num_sources; ++s)
    for (int t = 0; t < p.sources[s].num_terms; ++t)
      blocks += term_tiles(p, p.sources[s], p.sources[s].terms[t], tiling.block_m, block_n);
  launch("attention_bwd_terms_kernel", attention_bwd_terms_kernel<E, kWidth>, blocks,
         tiling.warps * kWarp, tiling.shared_bytes, stream, as_parameter(p, g, workspace), tiling,
         Alignment(p, g), blocks);
}

}  // namespace crossmodal::cuda
