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

// The passes of backward, in their order: queries, keys, terms.
template <class E, int kWidth>
void launch_attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                          const BackwardWorkspace& workspace, const BackwardTiling& tiling,
                          void* stream);

template <class E, int kWidth>
void launch_associate(const AttentionProblem& p, const AssociateProblem& request,
                      const Tiling& tiling, void* stream);

}  // namespace crossmodal::cuda
