// The launchers, one for each engine and width: each is defined by a source file of its own, so
// that compilers work side by side and a change of one kernel rebuilds little.
#pragma once

#include "core/attention_problem.h"
#include "cuda/backward_problem.h"
#include "cuda/few_tiling.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

struct RowShares;
struct TileQueue;

// plain: see scores_are_plain.
template <class E, int kWidth>
void launch_attention_fwd(const AttentionProblem& p, bool plain, const Tiling& tiling,
                          const RowShares& shares, const TileQueue& queue, void* stream);
template <class E, int kChunks>
void launch_attention_few_fwd(const AttentionProblem& p, bool plain, const FewTiling& tiling,
                              const RowShares& shares, void* stream);
// Where either left more than one share.
template <class E>
void launch_merge_rows(const AttentionProblem& p, bool plain, const RowShares& shares,
                       void* stream);

// The passes of backward over queries, then keys; and the third, over terms, where one needs it.
template <class E, int kWidth>
void launch_attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                          const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                          int num_shares, bool is_queued, void* stream);

// The first two in one kernel, of problems short enough; group: query heads to a head of keys.
template <class E, int kWidth>
void launch_attention_bwd_short(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                                int group, void* stream);

// Instead of all passes, for few queries.
template <class E, int kChunks>
void launch_attention_few_bwd(const AttentionProblem& p, const AttentionBackward& g,
                              const BackwardWorkspace& workspace, const FewTiling& tiling,
                              int num_shares, void* stream);

template <class E, int kWidth>
void launch_attention_bwd_terms(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const Tiling& tiling,
                                void* stream);

template <class E, int kWidth>
void launch_associate(const AttentionProblem& p, const AssociateProblem& request,
                      const Tiling& tiling, void* stream);

}  // namespace crossmodal::cuda
