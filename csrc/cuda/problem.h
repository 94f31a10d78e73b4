// An attention problem as a kernel parameter: its sources stand in it, since the host's list of
// them is out of a kernel's reach.
#pragma once

#include "core/attention_problem.h"

namespace crossmodal::cuda {

// As many as fit, with everything else, the 4 KB that every driver allows kernel parameters.
constexpr int kMostSources = 8;

// Queries of a sample, keys of all its sources: positions and their differences are int.
constexpr int64_t kMostRows = 1 << 30;

struct Problem : AttentionProblem {
  KeySource source[kMostSources];
  int group[kMostSources];  // query heads to a key head of each source

  // Divisions in double, done on the host.
  double inverse_softcap;
  uint64_t dropout_threshold;  // words below it drop their weight
  double dropout_kept;         // 1 / (1 - p)
  double inverse_num_heads;
};

// `p` has at most kMostSources sources.
inline Problem as_parameter(const AttentionProblem& p) {
  Problem problem{};
  static_cast<AttentionProblem&>(problem) = p;
  problem.sources = nullptr;
  for (int s = 0; s < p.num_sources; ++s) {
    problem.source[s] = p.sources[s];
    // Where there is no head, no thread asks.
    const int64_t num_heads_k = p.sources[s].num_heads_k;
    problem.group[s] = num_heads_k ? static_cast<int>(p.num_heads / num_heads_k) : 1;
  }
  problem.inverse_softcap = p.softcap > 0 ? 1 / p.softcap : 0;
  problem.dropout_threshold = static_cast<uint64_t>(p.dropout_p * 4294967296.0);
  problem.dropout_kept = p.dropout_p < 1 ? 1 / (1 - p.dropout_p) : 0;
  problem.inverse_num_heads = 1.0 / p.num_heads;
  return problem;
}

}  // namespace crossmodal::cuda
