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
                          bool is_queued, void* stream) {
  const BackwardProblem problem = as_parameter(p, g, workspace);
  const Alignment aligned(p, g);
  const bool plain = scores_are_plain(p) && g.associate == nullptr;

  const BackwardQueues queues(p, workspace, is_queued);
  const Tiling& queries = tiling.queries;
  if (is_queued) order_query_tiles(problem, queries, queues.queries, stream);
  launch_tiles("attention_bwd_queries_kernel",
               plain ? attention_bwd_queries_kernel<E, kWidth, true>
                     : attention_bwd_queries_kernel<E, kWidth, false>,
               all_query_tiles(p, queries), queries, queues.queries, stream, problem, queries,
               aligned, queues.queries);

  const Tiling& keys = tiling.keys;
  if (is_queued) order_key_tiles(problem, keys, queues.keys, stream);
  int64_t key_blocks = 0;
  int offset = 0;
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.sources[s];
    key_blocks += key_tiles(p, source, offset, keys.block_m) * source.num_heads_k * p.batch;
    offset += static_cast<int>(source.seqlen_k);
  }
  key_blocks *= keys.chunks;
  launch_tiles("attention_bwd_keys_kernel",
               plain ? attention_bwd_keys_kernel<E, kWidth, true>
                     : attention_bwd_keys_kernel<E, kWidth, false>,
               key_blocks, keys, queues.keys, stream, problem, keys, aligned, queues.keys,
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
