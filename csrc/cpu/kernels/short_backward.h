// Backward of a short problem (short_problem.h):
//
//   S^T = K Q^T, dP^T = V dout^T;  P^T = exp(S^T - top) / sum;  dS^T = P^T * (dP^T - delta),
//   delta = sum_j P dP - dlse;  dV = P^T dout, dK = scale * dS^T Q, dQ = scale * dS K
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/backward_prefetch.h"
#include "cpu/kernels/exp.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/score_terms.h"
#include "cpu/kernels/short_problem.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Whether dS is P (dP - delta) and nothing else, and no other head adds to dK and dV.
inline bool has_simple_gradients(const AttentionProblem& p, const AttentionBackward& g) {
  for (int s = 0; s < p.num_sources; ++s)
    if (p.sources[s].num_heads_k != p.num_heads) return false;
  return !g.dmass && !g.associate && !g.dsink;
}

template <class E>
class ShortBackward {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;
  using Operands = ShortOperands<E>;
  using In = RowsOf<const T>;

 public:
  ShortBackward(const AttentionProblem& p, const AttentionBackward& g, char* memory)
      : p_(p), g_(g), arena_(memory), operands_(&arena_), rows_(p, &arena_) {
    const int64_t queries = round_up(p.seqlen_q, V::kLanes);
    const int64_t keys = min_of(p.total_keys, kShortKeys);
    const int64_t rows = max_of(p.seqlen_q, keys);
    q_transposed_ = arena_.take<Word>(Operands::words_transposed(p.seqlen_q, p.head_dim));
    dout_transposed_ = arena_.take<Word>(Operands::words_transposed(p.seqlen_q, p.head_dim_v));
    along_ = arena_.take<Word>(Operands::words_along(keys, max_of(p.head_dim, p.head_dim_v)));
    q_across_ = arena_.take<Word>(Operands::words_across(p.seqlen_q, p.head_dim));
    dout_across_ = arena_.take<Word>(Operands::words_across(p.seqlen_q, p.head_dim_v));
    k_across_ = arena_.take<Word>(Operands::words_across(keys, p.head_dim));
    weights_ = arena_.take<Acc>(keys * queries);
    dscores_ = arena_.take<Acc>(keys * queries);
    dscore_pairs_ = arena_.take<Word>(E::kPerWord == 1 ? 0 : words_for<E>(keys) * queries);
    sums_ = arena_.take<Acc>(rows * round_up(max_of(p.head_dim, p.head_dim_v), V::kLanes));
    q_alive_ = arena_.take<T>(p.seqlen_q * p.head_dim);
    dout_alive_ = arena_.take<T>(p.seqlen_q * p.head_dim_v);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Pairs (batch, head) [begin, end).
  void run(int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t b = pair / p_.num_heads, h = pair % p_.num_heads;
      prefetcher_.clear();
      BackwardPrefetch<T>(p_, g_, kShortQueries, &prefetcher_)
          .after(b, h, {}, p_.seqlen_q, {0, 0}, pair + 1 == end);
      run_head(b, h);
    }
  }

 private:
  void run_head(int64_t b, int64_t h) {
    const Rows queries = query_rows(p_, b);
    rows_.find(p_, b, h);
    if (!p_.cu_seqlens_q && g_.dq) zero_rows(dq(b, h, queries.count, p_.seqlen_q));
    // Without a query or a key nothing flows back.
    const bool none = queries.count == 0 || rows_.count == 0;
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      const int64_t seen = rows_.keys[s].count;
      const int64_t all = source.cu_seqlens ? seen : source.seqlen_k;
      if (source.dk) zero_rows(dk(source, b, h, none ? 0 : seen, all));
      if (source.dv) zero_rows(dv(source, b, h, none ? 0 : seen, all));
    }
    if (none) {
      if (g_.dq) zero_rows(dq(b, h, 0, queries.count));
      return;
    }
    gradients(b, h, queries);
  }

  void gradients(int64_t b, int64_t h, Rows queries) {
    const int64_t vectors = ceil_div(queries.count, V::kLanes), ld = vectors * V::kLanes;
    const int64_t row = row_index(p_, b, h, 0);
    const Acc* sum = static_cast<const Acc*>(p_.row_sum) + row;
    const In q = alive({row_at<const T>(p_.q, p_.q_stride, b, h, queries.first), p_.q_stride[2],
                        queries.count, p_.head_dim},
                       sum, q_alive_);
    const In dout = alive({row_at<const T>(g_.dout, g_.dout_stride, b, h, queries.first),
                           g_.dout_stride[2], queries.count, p_.head_dim_v},
                          sum, dout_alive_);
    const OperandB<E> q_transposed = operands_.transposed(q, q_transposed_);
    const OperandB<E> dout_transposed = operands_.transposed(dout, dout_transposed_);
    int64_t at = 0;
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      product(rows_.keys[s], source.k_stride, q_transposed, vectors, weights_ + at);
      product(rows_.values[s], source.v_stride, dout_transposed, vectors, dscores_ + at);
      at += rows_.keys[s].count * ld;
    }
    for (int64_t x = 0; x < ld; x += V::kLanes)
      softmax_gradient(x, static_cast<int>(min_of(V::kLanes, queries.count - x)), row + x,
                       rows_.count, ld);

    const int64_t query_words = words_for<E>(queries.count);
    const Word* weights = reinterpret_cast<const Word*>(weights_);
    const Word* dscores = reinterpret_cast<const Word*>(dscores_);
    const OperandB<E> q_across = operands_.across(q, q_across_);
    const OperandB<E> dout_across = operands_.across(dout, dout_across_);
    at = 0;
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      const int64_t keys = rows_.keys[s].count;
      if (source.dv)
        product_to_rows(query_words, {weights + at, ld, 1}, dout_across, dv(source, b, h, 0, keys));
      if (source.dk)
        product_to_rows(query_words, {dscores + at, ld, 1}, q_across, dk(source, b, h, 0, keys));
      at += keys * ld;
    }
    if (g_.dq)
      product_to_rows(
          words_for<E>(rows_.count), {E::kPerWord == 1 ? dscores : dscore_pairs_, 1, ld},
          operands_.across(rows_.keys, p_.num_sources, k_across_), dq(b, h, 0, queries.count));
  }

  // S^T or dP^T of one source.
  void product(In rows, const int64_t* stride, OperandB<E> with, int64_t vectors, Acc* to) {
    gemm<E, Into::kStore>(rows.count, vectors, words_for<E>(rows.width),
                          operands_.along(rows, stride, along_), with, to, vectors * V::kLanes,
                          {0, INT64_MAX}, &prefetcher_);
  }

  void product_to_rows(int64_t words, OperandA<E> a, OperandB<E> b, RowsOf<T> to) {
    gemm_to_rows<E>(to.count, words, a, b, {to.first, to.stride, to.width}, sums_,
                    round_up(to.width, V::kLanes), false, &prefetcher_);
  }

  // Rows of queries; zero in place of those that have no weights, which may hold anything.
  static In alive(In rows, const Acc* sum, T* memory) {
    bool all = true;
    for (int64_t i = 0; i < rows.count; ++i) all &= sum[i] != 0;
    if (all) return rows;
    for (int64_t i = 0; i < rows.count; ++i) {
      T* copy = memory + i * rows.width;
      if (sum[i] == 0) {
        zero_row(copy, rows.width);
      } else {
        std::memcpy(copy, rows[i], rows.width * sizeof(T));
      }
    }
    return {memory, rows.width, rows.count, rows.width};
  }

  // S^T and dP^T of queries [x, x + n), n <= lanes, to P^T and scale * dS^T: floats, or elements
  // in place, of dS pairs of keys, too. 0 on the lanes beyond.
  void softmax_gradient(int64_t x, int n, int64_t row, int64_t keys, int64_t ld) {
    const V zero = V::zero(), one = V::set1(1);
    const Exponential<V> exponential(kLog2E * p_.scale);
    const V sum = V::load_first(static_cast<const Acc*>(p_.row_sum) + row, n);
    const V inverse = select_equal(sum, zero, zero, one / sum);
    const V top =
        select_equal(sum, zero, zero, V::load_first(static_cast<const Acc*>(p_.row_top) + row, n));
    V delta = zero;
    for (int64_t j = 0; j < keys;) {
      const int64_t end = min_of(keys, j + kSumChain);
      V chain = zero;
      for (; j < end; ++j) {
        Acc* s = weights_ + j * ld + x;
        const V weight = select_equal(inverse, zero, zero, exponential(V::load(s) - top) * inverse);
        weight.store(s);
        chain = fmadd(weight, V::load(dscores_ + j * ld + x), chain);
      }
      delta = delta + chain;
    }
    if (g_.dlse) delta = delta - V::load_first(static_cast<const Acc*>(g_.dlse) + row, n);

    const V factor = select_equal(inverse, zero, zero, V::set1(static_cast<Acc>(p_.scale)));
    const auto dscore = [&](int64_t j) {
      const V gradient = V::load(dscores_ + j * ld + x) - delta;
      return select_equal(factor, zero, zero, V::load(weights_ + j * ld + x) * factor * gradient);
    };
    for (int64_t j = 0; j < keys; j += E::kPerWord) {
      if constexpr (E::kPerWord == 1) {
        dscore(j).store(dscores_ + j * ld + x);
      } else {
        const bool two = j + 1 < keys;
        const auto elements = [&](Acc* rows, int64_t at) {
          return reinterpret_cast<T*>(rows + at * ld) + x;
        };
        const V first = dscore(j), second = two ? dscore(j + 1) : zero;
        store_pairs_and_rows(first, second, dscore_pairs_ + j / 2 * ld + x, elements(dscores_, j),
                             two ? elements(dscores_, j + 1) : nullptr);
        for (int64_t at = j; at < j + 1 + two; ++at)
          V::load(weights_ + at * ld + x).store(elements(weights_, at));
      }
    }
  }

  RowsOf<T> dq(int64_t b, int64_t h, int64_t begin, int64_t end) const {
    return {row_at<T>(g_.dq, g_.dq_stride, b, h, query_rows(p_, b).first + begin), g_.dq_stride[2],
            end - begin, p_.head_dim};
  }
  RowsOf<T> dk(const KeySource& source, int64_t b, int64_t h, int64_t begin, int64_t end) const {
    return {row_at<T>(source.dk, source.dk_stride, b, h, key_rows_of(source, b).first + begin),
            source.dk_stride[2], end - begin, p_.head_dim};
  }
  RowsOf<T> dv(const KeySource& source, int64_t b, int64_t h, int64_t begin, int64_t end) const {
    return {row_at<T>(source.dv, source.dv_stride, b, h, key_rows_of(source, b).first + begin),
            source.dv_stride[2], end - begin, p_.head_dim_v};
  }
  static void zero_rows(RowsOf<T> rows) {
    for (int64_t i = 0; i < rows.count; ++i) zero_row(rows[i], rows.width);
  }

  const AttentionProblem& p_;
  const AttentionBackward& g_;
  Prefetcher prefetcher_;
  Arena arena_;
  Operands operands_;
  VisibleRows<T> rows_;
  Word *q_transposed_, *dout_transposed_, *along_, *q_across_, *dout_across_, *k_across_,
      *dscore_pairs_;
  Acc *weights_, *dscores_, *sums_;
  T *q_alive_, *dout_alive_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
