// Enqueues the passes of backward; included by the source files of attention_bwd/, one for each
// engine and width.
#pragma once

#include "cuda/attention_bwd_keys.h"
#include "cuda/attention_bwd_queries.h"
#include "cuda/attention_bwd_terms.h"
#include "cuda/launch_tiles.h"
#include "cuda/order_tiles.h"

namespace crossmodal::cuda {

// One after the other in the workspace, or none.
struct BackwardQueues {
  BackwardQueues(const AttentionProblem& p, const BackwardWorkspace& workspace, bool wanted) {
    const int batch = static_cast<int>(p.batch);
    queries = {wanted ? static_cast<int32_t*>(workspace.scratch) : nullptr, batch};
    keys = {wanted ? queries.memory + queue_words(batch) : nullptr, batch * p.num_sources};
  }
  TileQueue queries, keys;
};

template <class E, int kWidth>
void launch_attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                          const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                          int num_shares, bool is_queued, void* stream) {
  const BackwardProblem problem = as_parameter(p, g, workspace);
  const Alignment aligned(p, g);
  const bool plain = scores_are_plain(p) && g.associate == nullptr;

  const BackwardQueues queues(p, workspace, is_queued);
  const Tiling& queries = tiling.queries;
  if (is_queued) order_query_tiles(problem, queries, queues.queries, stream);
  launch_tiles("attention_bwd_queries_kernel",
               plain ? attention_bwd_queries_kernel<E, kWidth, true>
                     : attention_bwd_queries_kernel<E, kWidth, false>,
               all_query_tiles(p, queries) * num_shares, queries, queues.queries, stream, problem,
               queries, aligned, QueryGrid(p, queries), queues.queries, num_shares);
  if (num_shares > 1 && g.dq) launch_merge_dq<E>(problem, num_shares, stream);

  const Tiling& keys = tiling.keys;
  if (is_queued) order_key_tiles(problem, keys, queues.keys, stream);
  const KeyGrid grid(p, keys);
  launch_tiles("attention_bwd_keys_kernel",
               plain ? attention_bwd_keys_kernel<E, kWidth, true>
                     : attention_bwd_keys_kernel<E, kWidth, false>,
               grid.tiles, keys, queues.keys, stream, problem, keys, aligned, grid, queues.keys);
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
