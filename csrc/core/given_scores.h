// Scores that need no products: `softmax_weighted_sum`.
#pragma once

#include "core/attention_problem.h"

namespace crossmodal {

// Internal linkage: kernels of several instruction sets include this.

// Far from where the factor of a product, or its product with a difference of scores, leaves the
// range of float.
static inline bool is_ordinary(double factor) { return factor > 1e-30 && factor < 1e30; }

static inline bool is_of(DType dtype, TermType type) {
  switch (dtype) {
    case DType::kFloat32:
      return type == TermType::kFloat32;
    case DType::kBFloat16:
      return type == TermType::kBFloat16;
    case DType::kFloat16:
      return type == TermType::kFloat16;
    case DType::kFloat64:
      return type == TermType::kFloat64;
  }
  return false;
}

// Where there are no features: the term that is the scores but for its factor, and can be read in
// the place of products; or null. Beside it only masks that are the same for every query.
static inline const ScoreTerm* given_scores(const AttentionProblem& p) {
  if (p.head_dim != 0 || p.num_sources != 1 || p.softcap > 0 || p.sink) return nullptr;
  // Every query sees every key of the list, so that every element of the gradient is met.
  const bool all = p.window_left < 0 && p.window_right < 0 && !p.query_lengths && !p.cu_seqlens_q;
  if (!all) return nullptr;
  const KeySource& source = p.sources[0];
  const ScoreTerm* given = nullptr;
  for (int t = 0; t < source.num_terms; ++t) {
    const ScoreTerm& term = source.terms[t];
    if (term.type == TermType::kBool && term.stride[2] == 0) continue;
    const bool fits = is_of(p.dtype, term.type) && term.stride[3] == 1 && !term.grad;
    if (given || !fits || !is_ordinary(term.factor)) return nullptr;
    given = &term;
  }
  return given;
}

}  // namespace crossmodal
