// Forward of a short problem (short_problem.h):
//
//   S^T = K Q^T;  P^T = exp(S^T - m), m along keys;  out = P V / l, l the sum of P^T along keys
#pragma once

#include <cstdint>

#include "cpu/kernels/exp.h"
#include "cpu/kernels/row_total.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/short_problem.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class ShortForward {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;
  using Operands = ShortOperands<E>;

 public:
  ShortForward(const AttentionProblem& p, char* memory)
      : p_(p), arena_(memory), operands_(&arena_), rows_(p, &arena_) {
    const int64_t queries = round_up(p.seqlen_q, V::kLanes);
    const int64_t keys = min_of(p.total_keys, kShortKeys);
    q_packed_ = arena_.take<Word>(Operands::words_transposed(p.seqlen_q, p.head_dim));
    k_packed_ = arena_.take<Word>(Operands::words_along(keys, p.head_dim));
    v_packed_ = arena_.take<Word>(Operands::words_across(keys, p.head_dim_v));
    scores_ = arena_.take<Acc>(keys * queries);
    weights_ = arena_.take<Word>(E::kPerWord == 1 ? 0 : words_for<E>(keys) * queries);
    out_ = arena_.take<Acc>(p.seqlen_q * round_up(p.head_dim_v, V::kLanes));
    top_ = arena_.take<Acc>(queries);
    sum_ = arena_.take<Acc>(queries);
    inverse_ = arena_.take<Acc>(queries);
    source_sums_ = arena_.take<Acc>(p.mass ? p.num_sources * queries : 0);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Pairs (batch, head) [begin, end).
  void run(int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t b = pair / p_.num_heads, h = pair % p_.num_heads;
      const int64_t queries = query_rows(p_, b).count;
      rows_.find(p_, b, h);
      const int64_t alive = rows_.count == 0 ? 0 : queries;
      write_blind_rows(b, h, alive, p_.cu_seqlens_q ? queries : p_.seqlen_q);
      if (alive == 0) continue;
      prefetcher_.clear();
      prefetcher_.add_head<T>(p_.out, p_.out_stride, b, h, {query_rows(p_, b).first, queries},
                              p_.head_dim_v);
      if (pair + 1 < end) prefetch((pair + 1) / p_.num_heads, (pair + 1) % p_.num_heads);
      run_head(b, h, queries);
    }
  }

 private:
  void run_head(int64_t b, int64_t h, int64_t queries) {
    const int64_t vectors = ceil_div(queries, V::kLanes), ld = vectors * V::kLanes;
    const int64_t first_query = query_rows(p_, b).first;
    const RowsOf<const T> q = {row_at<const T>(p_.q, p_.q_stride, b, h, first_query),
                               p_.q_stride[2], queries, p_.head_dim};
    const RowsOf<T> out = {row_at<T>(p_.out, p_.out_stride, b, h, first_query), p_.out_stride[2],
                           queries, p_.head_dim_v};
    const OperandB<E> q_transposed = operands_.transposed(q, q_packed_);
    Acc* scores = scores_;
    for (int s = 0; s < p_.num_sources; ++s) {
      const RowsOf<const T> k = rows_.keys[s];
      gemm<E, Into::kStore>(k.count, vectors, words_for<E>(p_.head_dim),
                            operands_.along(k, p_.sources[s].k_stride, k_packed_), q_transposed,
                            scores, ld, {0, INT64_MAX}, &prefetcher_);
      scores += k.count * ld;
    }
    for (int64_t x = 0; x < ld; x += V::kLanes) softmax(x, ld);
    const Word* weights = E::kPerWord == 1 ? reinterpret_cast<const Word*>(scores_) : weights_;
    gemm_to_rows<E>(queries, words_for<E>(rows_.count), {weights, 1, ld},
                    operands_.across(rows_.values, p_.num_sources, v_packed_),
                    {out.first, out.stride, out.width, inverse_}, out_,
                    round_up(out.width, V::kLanes), false, &prefetcher_);
    finish(row_index(p_, b, h, 0), out, ld);
  }

  void prefetch(int64_t b, int64_t h) {
    prefetcher_.add_head<T>(p_.q, p_.q_stride, b, h, query_rows(p_, b), p_.head_dim);
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      const Rows keys = key_rows_of(source, b);
      const int64_t head = key_head(p_, source, h);
      prefetcher_.add_head<T>(source.k, source.k_stride, b, head, keys, p_.head_dim);
      prefetcher_.add_head<T>(source.v, source.v_stride, b, head, keys, p_.head_dim_v);
    }
  }

  // Queries [x, x + lanes).
  void softmax(int64_t x, int64_t ld) {
    const int64_t keys = rows_.count;
    const V hidden = V::set1(minus_infinity<Acc>()), zero = V::zero();
    const Exponential<V> exponential(kLog2E * p_.scale);
    Acc* s = scores_ + x;
    V even = hidden, odd = hidden;
    int64_t j = 0;
    for (; j + 1 < keys; j += 2) {
      even = max(even, V::load(s + j * ld));
      odd = max(odd, V::load(s + (j + 1) * ld));
    }
    if (j < keys) even = max(even, V::load(s + j * ld));
    const V top = max(even, odd);
    // Exponents of -inf - 0 are exact zeros, where -inf - (-inf) would be NaN.
    const V shift = select_equal(top, hidden, zero, top);
    V sum = zero;
    j = 0;
    // Summed by source even if nobody asks for the mass: no output changes with what else is asked.
    for (int64_t source = 0; source < p_.num_sources; ++source) {
      const int64_t last = j + rows_.keys[source].count;
      V share = zero;
      while (j < last) {
        const int64_t end = min_of(last, j + kSumChain);
        V chain = zero;
        for (; j < end; ++j) {
          const V e = exponential(V::load(s + j * ld) - shift);
          e.store(s + j * ld);
          chain = chain + e;
        }
        share = share + chain;
      }
      if (p_.mass) share.store(source_sums_ + source * ld + x);
      sum = sum + share;
    }
    top.store(top_ + x);
    sum.store(sum_ + x);
    select_equal(sum, zero, zero, V::set1(1) / sum).store(inverse_ + x);
    if constexpr (E::kPerWord == 2)
      for (j = 0; j < keys; j += 2) {
        const Acc* row = s + j * ld;
        store_pairs(V::load(row), j + 1 < keys ? V::load(row + ld) : zero,
                    weights_ + j / 2 * ld + x);
      }
  }

  void finish(int64_t first_row, RowsOf<T> out, int64_t ld) {
    for (int64_t i = 0; i < out.count; ++i) {
      // A value row may have been NaN.
      if (sum_[i] == 0) zero_row(out[i], out.width);
      write_statistics(first_row + i, plain_total<V>(p_, p_.scale, top_[i], sum_[i]));
      if (!p_.mass) continue;
      for (int64_t s = 0; s < p_.num_sources; ++s)
        mass_of(first_row + i)[s] = sum_[i] == 0 ? 0 : source_sums_[s * ld + i] * inverse_[i];
    }
  }

  // Queries that see no key, or stand beyond the sample's length.
  void write_blind_rows(int64_t b, int64_t h, int64_t begin, int64_t end) {
    T* out = row_at<T>(p_.out, p_.out_stride, b, h, query_rows(p_, b).first);
    for (int64_t i = begin; i < end; ++i) {
      zero_row(out + i * p_.out_stride[2], p_.head_dim_v);
      const int64_t row = row_index(p_, b, h, i);
      write_statistics(row, RowTotal<Acc>::none());
      if (p_.mass) zero_row(mass_of(row), p_.num_sources);
    }
  }

  Acc* mass_of(int64_t row) const { return static_cast<Acc*>(p_.mass) + row * p_.num_sources; }

  void write_statistics(int64_t row, const RowTotal<Acc>& total) {
    if (p_.lse) static_cast<Acc*>(p_.lse)[row] = total.lse;
    if (!p_.row_top) return;
    static_cast<Acc*>(p_.row_top)[row] = total.top;
    static_cast<Acc*>(p_.row_sum)[row] = total.sum;
  }

  const AttentionProblem& p_;
  Prefetcher prefetcher_;
  Arena arena_;
  Operands operands_;
  VisibleRows<T> rows_;
  Word *q_packed_, *k_packed_, *v_packed_, *weights_;
  Acc *scores_, *out_, *top_, *sum_, *inverse_, *source_sums_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
