// An attention problem and what flows back into it, as a kernel parameter.
#pragma once

#include "cuda/problem.h"

namespace crossmodal::cuda {

// Numbers of the accumulator's type that the pass over queries leaves of each: see RowState.
constexpr int kRowStateSize = 4;

struct BackwardWorkspace {
  void* rows;     // kRowStateSize for each query, in the order of lse
  double* dsink;  // as lse: each query's share of the sink's gradient; null: not wanted
  void* scratch;  // as many bytes as attention_bwd_workspace says
};

struct BackwardProblem : Problem {
  AttentionBackward gradient;
  AssociateGradient associate;
  void* rows;
  double* row_dsink;
  void* scratch;
  // delta is the sum over the rebuilt weights, not rowsum(dout * out): out was rounded, and the
  // gradients of biases and sinks are small differences.
  bool exact_delta;
};

inline BackwardProblem as_parameter(const AttentionProblem& p, const AttentionBackward& g,
                                    const BackwardWorkspace& workspace) {
  BackwardProblem problem{};
  static_cast<Problem&>(problem) = as_parameter(p);
  problem.gradient = g;
  if (g.associate) problem.associate = *g.associate;
  problem.rows = workspace.rows;
  problem.row_dsink = workspace.dsink;
  problem.scratch = workspace.scratch;
  problem.exact_delta = g.associate != nullptr || workspace.dsink != nullptr;
  for (int s = 0; s < p.num_sources; ++s)
    for (int t = 0; t < p.sources[s].num_terms; ++t)
      problem.exact_delta |= p.sources[s].terms[t].grad != nullptr;
  return problem;
}

}  // namespace crossmodal::cuda
