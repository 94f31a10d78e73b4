// Which kernels a problem takes: those that turn products into weights by one factor, or the
// general ones.
#pragma once

#include <algorithm>

#include "core/attention_problem.h"

namespace crossmodal::cuda {

// Columns of half precision that one panel holds, and one block sums, in every kernel.
constexpr int64_t kWidestPlainRow = 128;

// Kernels that take plain scores of half precision also take for granted that rows are one panel,
// which frees the registers of loops over panels.
inline bool rows_may_be_plain(const AttentionProblem& p) {
  return size_of(p.dtype) > 2 || (std::min(p.head_dim, p.head_dim_v) > 0 &&
                                  std::max(p.head_dim, p.head_dim_v) <= kWidestPlainRow);
}

// Products are scores: nothing is added or capped, one factor makes them exponents. Statistics of
// rows then hold the largest product, exact where scaling it first would round.
inline bool scores_are_plain(const AttentionProblem& p) {
  if (!rows_may_be_plain(p)) return false;
  bool terms = false;
  for (int s = 0; s < p.num_sources; ++s) terms |= p.sources[s].num_terms > 0;
  // Far from where the factor, or its product with a difference of scores, leaves the range of
  // float.
  const bool ordinary = p.scale > 1e-30 && p.scale < 1e30;
  return !terms && p.softcap <= 0 && ordinary && p.sink == nullptr && p.dropout_p == 0;
}

}  // namespace crossmodal::cuda
