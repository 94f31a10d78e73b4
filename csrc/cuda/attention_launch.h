// The launchers, one for each engine and width: each is defined by a source file of its own, so
// that compilers work side by side and a change of one kernel rebuilds little.
#pragma once

#include "core/attention_problem.h"
#include "cuda/backward_problem.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

// plain: see scores_are_plain.
template <class E, int kWidth>
void launch_attention_fwd(const AttentionProblem& p, bool plain, const Tiling& tiling,
                          void* stream);

// The passes of backward over queries, then keys; and the third, over terms, where one needs it.
template <class E, int kWidth>
void launch_attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                          const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                          void* stream);

// The first two in one kernel, for problems that is_short takes.
template <class E, int kWidth>
void launch_attention_bwd_short(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                                void* stream);
template <class E, int kWidth>
void launch_attention_bwd_terms(const AttentionProblem& p, const AttentionBackward& g,
                                const BackwardWorkspace& workspace, const Tiling& tiling,
                                void* stream);

template <class E, int kWidth>
void launch_associate(const AttentionProblem& p, const AssociateProblem& request,
                      const Tiling& tiling, void* stream);

}  // namespace crossmodal::cuda
