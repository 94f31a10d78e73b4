// Attention on the CPU: cuts a problem into tasks and runs the active instruction set's kernels on
// them.
#pragma once

#include "core/attention_problem.h"
#include "core/double_backward.h"
#include "cpu/parallel.h"

namespace crossmodal::cpu {

void attention_fwd(const AttentionProblem& problem, const Threads& threads);

// How backward is cut where bias gradients are summed over batch or heads, for a given thread
// count: each group of consecutive (batch, head) pairs runs in order and owns one accumulator.
struct BackwardSplit {
  int64_t groups;
  int64_t partials;
};
BackwardSplit split_backward(const AttentionProblem& problem, int threads);

// Adds the partial accumulators of each term's gradient into the first, in order.
void attention_bwd(const AttentionProblem& problem, const AttentionBackward& gradients,
                   const BackwardSplit& split, const Threads& threads);

// The same, by the same split, for the backward of backward.
void attention_double_bwd(const AttentionProblem& problem, const AttentionDoubleBackward& gradients,
                          const BackwardSplit& split, const Threads& threads);

void associate(const AttentionProblem& problem, const AssociateProblem& request,
               const Threads& threads);

}  // namespace crossmodal::cpu
