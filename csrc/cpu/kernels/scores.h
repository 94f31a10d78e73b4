// From raw products to scores: which keys of a chunk a query sees, and with what bias. Forward,
// backward and associate share it, so that all three agree on every mask.
#pragma once

#include <cstdint>

#include "core/given_scores.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/tanh.h"
#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// What the terms of all sources ask for, found once per task.
struct TermKinds {
  bool dense = false;      // differ between queries
  bool key_bias = false;   // float, the same for every query
  bool gradients = false;  // some term wants its gradient

  // Of all terms but `given`.
  explicit TermKinds(const AttentionProblem& p, const ScoreTerm* given = nullptr) {
    for (int s = 0; s < p.num_sources; ++s)
      for (int t = 0; t < p.sources[s].num_terms; ++t) {
        const ScoreTerm& term = p.sources[s].terms[t];
        if (&term == given) continue;
        if (!is_per_key(term)) dense = true;
        if (is_per_key(term) && term.type != TermType::kBool) key_bias = true;
        if (term.grad != nullptr) gradients = true;
      }
  }
};

// The bias of a chunk [begin, end) of visible keys for one query after the other.
template <class Acc>
class ChunkBias {
 public:
  // `key_bias` and `row_bias` have room for a chunk.
  ChunkBias(const AttentionProblem& p, const TermKinds& kinds, const VisibleKeys& keys, int64_t b,
            int64_t h, Acc* key_bias, Acc* row_bias)
      : p_(p), kinds_(kinds), keys_(keys), b_(b), h_(h), key_bias_(key_bias), row_bias_(row_bias) {}

  void start_chunk(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    if (kinds_.key_bias) fill(key_bias_, 0, true, nullptr);
  }

  // [end - begin] values to add to the scaled scores of query i, -inf = hidden; null: nothing to
  // add.
  const Acc* for_query(int64_t i) {
    const Acc* key_bias = kinds_.key_bias ? key_bias_ : nullptr;
    if (!kinds_.dense) return key_bias;
    fill(row_bias_, i, false, key_bias);
    return row_bias_;
  }

 private:
  void fill(Acc* bias, int64_t i, bool per_key, const Acc* start) {
    const int64_t n = end_ - begin_;
    for (int64_t x = 0; x < n; ++x) bias[x] = start ? start[x] : Acc(0);
    for_each_stretch(p_, keys_, begin_, end_,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       const KeySource& source = p_.sources[s];
                       for (int t = 0; t < source.num_terms; ++t)
                         if (is_per_key(source.terms[t]) == per_key)
                           add_term<Acc>(source.terms[t], b_, h_, i, keys_.rows + from, to - from,
                                         contiguous, bias + (from - begin_));
                     });
  }

  const AttentionProblem& p_;
  const TermKinds& kinds_;
  const VisibleKeys& keys_;
  int64_t b_, h_;
  Acc* key_bias_;
  Acc* row_bias_;
  int64_t begin_ = 0, end_ = 0;
};

// row[x] = score of query i for key [begin + x] of the list, before its factor.
template <class V, class T>
void copy_scores(const ScoreTerm& given, int64_t b, int64_t h, int64_t i, const VisibleKeys& keys,
                 int64_t begin, int64_t end, typename V::Scalar* row) {
  const T* scores = static_cast<const T*>(given.data) + term_offset(given, b, h, i);
  const int64_t n = end - begin;
  if (!keys.segments[0].contiguous) {
    for (int64_t x = 0; x < n; ++x)
      row[x] = static_cast<typename V::Scalar>(term_value(scores + keys.rows[begin + x]));
    return;
  }
  store_row<V>(scores + keys.rows[begin], n, row);
}

// The way back: row[key] = ds[x] for the keys [begin, begin + n) of the list.
template <class V, class S, class T>
void write_dscores(const S* ds, const VisibleKeys& keys, int64_t begin, int64_t n, T* row) {
  if (keys.segments[0].contiguous) return store_row<V>(ds, n, row + keys.rows[begin]);
  for (int64_t x = 0; x < n; ++x) store_row<V>(ds + x, 1, row + keys.rows[begin + x]);
}

constexpr int64_t round_down(int64_t a, int64_t b) { return a / b * b; }

// s[x] -> c * tanh(scale * s[x] / c) for the keys seen; slope[x], if wanted, is its derivative by
// the scaled score.
template <class V>
void cap_scores(typename V::Scalar* s, Range seen, typename V::Scalar scale,
                typename V::Scalar softcap, typename V::Scalar* slope) {
  const V factor = V::set1(scale), cap = V::set1(softcap);
  for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
    const Capped<V> capped = soft_cap(factor * V::load(s + x), cap);
    capped.value.store(s + x);
    if (slope) capped.slope.store(slope + x);
  }
}

// s[x] -> scale * s[x] + bias[x] for the keys seen, -inf where bias is -inf (even if s is NaN
// there) and for the other lanes of their vectors. Returns the largest score, lane by lane. NaN
// scores stay NaN.
template <class V>
V finish_scores(typename V::Scalar* s, Range seen, typename V::Scalar scale,
                const typename V::Scalar* bias) {
  using Acc = typename V::Scalar;
  const V hidden = V::set1(minus_infinity<Acc>());
  const V factor = V::set1(scale);
  V top = hidden;
  for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
    const V product = V::load(s + x);
    V score = factor * product;
    const int rest = static_cast<int>(min_of(V::kLanes, seen.end - x));
    if (bias != nullptr) {
      const V b = rest == V::kLanes ? V::load(bias + x) : V::load_first(bias + x, rest);
      score = select_equal(b, hidden, hidden, fmadd(factor, product, b));
    }
    if (rest < V::kLanes) score = keep_first(score, rest, hidden);
    if (x < seen.begin) score = keep_first(hidden, static_cast<int>(seen.begin - x), score);
    score.store(s + x);
    top = max(top, score);
  }
  return top;
}

// Products to scores, with everything that stands between them; slope as in cap_scores.
template <class V>
V products_to_scores(const AttentionProblem& p, typename V::Scalar* s, Range seen,
                     const typename V::Scalar* bias, typename V::Scalar* slope = nullptr) {
  using Acc = typename V::Scalar;
  const Acc scale = static_cast<Acc>(p.scale);
  if (p.softcap <= 0) return finish_scores<V>(s, seen, scale, bias);
  cap_scores<V>(s, seen, scale, static_cast<Acc>(p.softcap), slope);
  return finish_scores<V>(s, seen, Acc(1), bias);
}

// row[x] = per_source[the source of key k_begin + x] for the keys seen, 0 on the other lanes of
// their vectors.
template <class V>
void spread_over_keys(const AttentionProblem& p, const VisibleKeys& keys, int64_t k_begin,
                      Range seen, const typename V::Scalar* per_source, typename V::Scalar* row) {
  for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.begin; ++x) row[x] = 0;
  for_each_stretch(p, keys, k_begin + seen.begin, k_begin + seen.end,
                   [&](int source, int64_t from, int64_t to, bool) {
                     for (int64_t x = from; x < to; ++x) row[x - k_begin] = per_source[source];
                   });
  for (int64_t x = seen.end; x < round_up(seen.end, V::kLanes); ++x) row[x] = 0;
}

// sum_j P (dP + dmass): delta but for lse.
template <class V>
typename V::Scalar weighted_gradient_sum(const typename V::Scalar* weights,
                                         const typename V::Scalar* dp,
                                         const typename V::Scalar* dmass, Range seen) {
  const V zero = V::zero();
  V total = zero;
  int64_t x = round_down(seen.begin, V::kLanes);
  while (x < seen.end) {
    const int64_t end = min_of(seen.end, x + kSumChain * V::kLanes);
    V sum = zero;
    for (; x < end; x += V::kLanes) {
      const V weight = V::load(weights + x);
      const V gradient = dmass ? V::load(dp + x) + V::load(dmass + x) : V::load(dp + x);
      sum = sum + select_equal(weight, zero, zero, weight * gradient);
    }
    total = total + sum;
  }
  return reduce_add(total);
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
