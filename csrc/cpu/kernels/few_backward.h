// Backward of few queries over keys of which every query sees all, scores plain:
//
//   for each query:  S = K q, dP = V dout;  P = exp(S - top) / sum;  dS = scale * P * (dP - delta),
//                    delta = sum_j P dP - dlse;  dq = sum_j dS_j k_j
//   for each key:    dk = sum_i dS_i q_i, dv = sum_i P_i dout_i
//
// Rows of K and V are read where they stand, and the gradients of a key, sums of at most
// kFewQueries rows, leave for its own rows at once.
#pragma once

#include <cstdint>

#include "cpu/kernels/arena.h"
#include "cpu/kernels/attention_fwd.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/key_gradients.h"
#include "cpu/kernels/plain_gradient.h"
#include "cpu/kernels/query_gradient.h"
#include "cpu/kernels/short_backward.h"
#include "cpu/kernels/tiling.h"
#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Beyond, the general backward has several chunks, and delta from out.
constexpr int64_t kFewBackwardKeys = kBackwardBlockN;

// Whether samples with at most so many keys, unless they are short, come here.
inline bool may_be_few_backward(const AttentionProblem& p, const AttentionBackward& g, bool plain) {
  return p.seqlen_q <= kFewQueries && plain && p.window_left < 0 && p.window_right < 0 &&
         p.dropout_p == 0 && has_simple_gradients(p, g);
}

template <class E>
class FewBackward {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  // Numbers stay as they are: no product takes them in words of two.
  using Numbers = FmaEngine<V, T>;

 public:
  FewBackward(const AttentionProblem& p, const AttentionBackward& g, char* memory)
      : p_(p),
        g_(g),
        arena_(memory),
        key_gradients_(p, &arena_),
        dq_to_(p, g.dq, g.dq_stride, p.head_dim, false, &arena_),
        row_(score_row<E>(min_of(p.total_keys, kFewBackwardKeys))),
        prefetches_(pays_to_prefetch<E>(p)) {
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    k_rows_ = arena_.take<const T*>(p.total_keys);
    v_rows_ = arena_.take<const T*>(p.total_keys);
    weights_ = arena_.take<Acc>(kFewQueries * row_);
    dscores_ = arena_.take<Acc>(kFewQueries * row_);
    dq_ = arena_.take<Acc>(round_up(p.head_dim, V::kLanes));
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Pairs (batch, head) [begin, end).
  void run(int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair)
      run_head(pair / p_.num_heads, pair % p_.num_heads);
  }

 private:
  // Queries that see a key, and what forward left of their rows.
  struct Alive {
    const T *q[kFewQueries], *dout[kFewQueries];
    Acc top[kFewQueries], sum[kFewQueries], delta[kFewQueries];
    int64_t index[kFewQueries], count = 0;
  };

  void run_head(int64_t b, int64_t h) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    key_gradients_.start(keys, b, h);
    dq_to_.start(b, h);
    Alive alive = find_alive(b, h);
    if (keys.count == 0) return;
    key_rows<T>(p_, keys, b, h, 0, keys.count, k_rows_, v_rows_);
    for (int64_t i = 0; i < alive.count; ++i) products(alive.q[i], alive.dout[i], keys.count, i);
    PlainGradient<Numbers>{weights_,
                           dscores_,
                           row_,
                           alive.count,
                           keys.count,
                           alive.top,
                           alive.sum,
                           alive.delta,
                           true,
                           Exponential<V>(kLog2E * p_.scale),
                           static_cast<Acc>(p_.scale),
                           nullptr,
                           nullptr}
        .run();
    if (g_.dq)
      for (int64_t i = 0; i < alive.count; ++i) {
        zero_row(dq_, round_up(p_.head_dim, V::kLanes));
        add_weighted_rows<V>(dscores_ + i * row_, k_rows_, keys.count, p_.head_dim, dq_);
        store_row<V>(dq_, p_.head_dim, dq_to_.rows_from(alive.index[i]).rows);
      }
    key_gradients_.write_sums(keys, b, h, {dscores_, alive.q}, {weights_, alive.dout}, row_,
                              alive.count);
  }

  // Gradients of the others are zero, and their rows may hold anything.
  Alive find_alive(int64_t b, int64_t h) {
    Alive alive;
    const Rows queries = query_rows(p_, b);
    for (int64_t i = 0; i < queries.count; ++i) {
      const int64_t row = row_index(p_, b, h, i), n = alive.count;
      const Acc sum = static_cast<const Acc*>(p_.row_sum)[row];
      if (sum == 0) {
        if (g_.dq) dq_to_.zero(i, i + 1);
        continue;
      }
      alive.q[n] = row_at<const T>(p_.q, p_.q_stride, b, h, queries.first + i);
      alive.dout[n] = row_at<const T>(g_.dout, g_.dout_stride, b, h, queries.first + i);
      alive.top[n] = static_cast<const Acc*>(p_.row_top)[row];
      alive.sum[n] = sum;
      alive.delta[n] = g_.dlse ? -static_cast<const Acc*>(g_.dlse)[row] : Acc(0);
      alive.index[n] = i;
      ++alive.count;
    }
    return alive;
  }

  void products(const T* q, const T* dout, int64_t n, int64_t i) {
    Acc *s = weights_ + i * row_, *dp = dscores_ + i * row_;
    if (prefetches_ && i == 0) {
      dot_with_rows<V, true>(q, k_rows_, n, p_.head_dim, s, v_rows_);
    } else {
      dot_with_rows<V>(q, k_rows_, n, p_.head_dim, s);
    }
    dot_with_rows<V>(dout, v_rows_, n, p_.head_dim_v, dp);
  }

  const AttentionProblem& p_;
  const AttentionBackward& g_;
  Arena arena_;
  KeyGradients<E> key_gradients_;
  QueryGradient<E> dq_to_;
  int64_t row_;
  bool prefetches_;
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_;
  Acc *weights_, *dscores_, *dq_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
