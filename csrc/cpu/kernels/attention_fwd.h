// Forward of one (batch, head) for a panel of queries:
//
//   for each chunk of visible keys:  pack K^T and V
//     for each block of queries:     S = Q K^T;  P = exp(S - m), m the running maximum;  O = O *
//     correction + P V
//   out = O / l
//
// Up to 512 keys there is one chunk and the softmax sees its whole row; beyond, it is the online
// softmax of Milakov & Gimelshein (2018), as in FlashAttention (Dao et al., 2022). No L_q x L_k
// array is ever made.
#pragma once

#include <cstdint>

#include "cpu/kernels/arena.h"
#include "cpu/kernels/exp.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/tiling.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

inline float natural_log(float x) { return __builtin_logf(x); }
inline double natural_log(double x) { return __builtin_log(x); }

// s[x] = exp(s[x] - top) for x < n; returns the sum. Lanes beyond n hold -inf before and 0 after.
template <class V>
typename V::Scalar exponentiate(typename V::Scalar* s, int64_t n, typename V::Scalar top) {
  using Acc = typename V::Scalar;
  const V shift = V::set1(top), log2e = V::set1(static_cast<Acc>(kLog2E));
  V even = V::zero(), odd = V::zero();
  int64_t x = 0;
  for (; x + V::kLanes < n; x += 2 * V::kLanes) {
    const V a = exp2_nonpositive((V::load(s + x) - shift) * log2e);
    const V b = exp2_nonpositive((V::load(s + x + V::kLanes) - shift) * log2e);
    a.store(s + x);
    b.store(s + x + V::kLanes);
    even = even + a;
    odd = odd + b;
  }
  if (x < n) {
    const V a = exp2_nonpositive((V::load(s + x) - shift) * log2e);
    a.store(s + x);
    even = even + a;
  }
  return reduce_add(even + odd);
}

// Floats to words in place, for the operand of P V; the reader is ahead of the writer.
template <class E>
void words_in_place(typename E::Acc* row, int64_t n) {
  using V = typename E::Vec;
  if constexpr (E::kPerWord == 2) {
    BFloat16* out = reinterpret_cast<BFloat16*>(row);
    int64_t x = 0;
    for (; x < n; x += V::kLanes) V::load(row + x).store(out + x);
  }
}

template <class E>
class AttentionForward {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

 public:
  AttentionForward(const AttentionProblem& p, int64_t panel_rows, char* memory)
      : p_(p),
        kinds_(p),
        arena_(memory),
        chunk_(min_of(p.total_keys, kForwardBlockN)),
        block_(min_of(panel_rows, kForwardBlockM)),
        words_(words_for<E>(p.head_dim)),
        width_v_(round_up(p.head_dim_v, V::kLanes)),
        score_row_(score_row<E>(chunk_)) {
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    k_rows_ = arena_.take<const T*>(chunk_);
    v_rows_ = arena_.take<const T*>(chunk_);
    q_rows_ = arena_.take<const T*>(block_);
    const bool packs = !has_few_queries(p);
    k_packed_ = arena_.take<Word>(packs ? words_ * round_up(chunk_, V::kLanes) : 0);
    v_packed_ = arena_.take<Word>(packs ? words_for<E>(chunk_) * width_v_ : 0);
    q_packed_ = arena_.take<Word>(block_ * words_);
    scores_ = arena_.take<Acc>(block_ * score_row_);
    out_ = arena_.take<Acc>(panel_rows * width_v_);
    top_ = arena_.take<Acc>(panel_rows);
    sum_ = arena_.take<Acc>(panel_rows);
    mass_ = arena_.take<Acc>(panel_rows * p.num_sources);
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  void run(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    const int64_t panel = q_end - q_begin;
    for (int64_t i = 0; i < panel; ++i) {
      top_[i] = minus_infinity<Acc>();
      sum_[i] = 0;
    }
    for (int64_t i = 0; i < panel * width_v_; ++i) out_[i] = 0;
    if (p_.mass)
      for (int64_t i = 0; i < panel * p_.num_sources; ++i) mass_[i] = 0;

    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Blocks chunks(keys.count, kForwardBlockN), blocks(panel, kForwardBlockM);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c);
      key_rows<T>(p_, keys, b, h, begin, end, k_rows_, v_rows_);
      bias.start_chunk(begin, end);
      if (has_few_queries(p_)) {
        few_queries_step(b, h, q_begin, q_end, keys, begin, end, bias);
        continue;
      }
      pack_transposed<E>(k_rows_, end - begin, p_.head_dim, k_packed_);
      pack_across_rows<E>(v_rows_, end - begin, p_.head_dim_v, v_packed_, width_v_);
      for (int64_t m = 0; m < blocks.count; ++m)
        step(b, h, q_begin + blocks.begin(m), q_begin + blocks.end(m), q_begin, keys, begin, end,
             bias);
    }
    finish(b, h, q_begin, panel);
  }

 private:
  // One block of queries against one chunk of keys.
  void step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end, int64_t q_begin,
            const VisibleKeys& keys, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    int64_t n = k_end - k_begin;
    if (p_.is_causal) {
      // The last query sees the most: beyond its prefix the whole block sees nothing.
      n = min_of(n, causal_prefix(p_, keys, i_end - 1) - k_begin);
      if (n <= 0) return;
    }
    const int64_t rows = i_end - i_begin;
    const T* q = static_cast<const T*>(p_.q) + b * p_.q_stride[0] + h * p_.q_stride[1];
    for (int64_t i = 0; i < rows; ++i) q_rows_[i] = q + (i_begin + i) * p_.q_stride[2];
    pack_along_row<E>(q_rows_, rows, p_.head_dim, q_packed_, words_);
    // Panels were cut for the whole chunk, so the product covers it; what lies beyond n is
    // overwritten below.
    gemm<E, Into::kStore>(rows, ceil_div(k_end - k_begin, V::kLanes), words_,
                          {q_packed_, words_, 1}, {k_packed_, true, 0}, scores_, score_row_);

    for (int64_t i = 0; i < rows; ++i) {
      Acc* s = scores_ + i * score_row_;
      const int64_t seen = seen_keys(keys, i_begin + i, k_begin, n);
      softmax_step(i_begin + i, i_begin + i - q_begin, s, seen, n, keys, k_begin, bias);
      words_in_place<E>(s, round_up(n, V::kLanes));
    }
    gemm<E, Into::kAdd>(rows, width_v_ / V::kLanes, words_for<E>(n),
                        {reinterpret_cast<const Word*>(scores_), score_row_, 1},
                        {v_packed_, false, width_v_}, out_ + (i_begin - q_begin) * width_v_,
                        width_v_);
  }

  void few_queries_step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end,
                        const VisibleKeys& keys, int64_t k_begin, int64_t k_end,
                        ChunkBias<Acc>& bias) {
    const T* q = static_cast<const T*>(p_.q) + b * p_.q_stride[0] + h * p_.q_stride[1];
    for (int64_t i = i_begin; i < i_end; ++i) {
      const int64_t n = seen_keys(keys, i, k_begin, k_end - k_begin), r = i - i_begin;
      dot_with_rows<V>(q + i * p_.q_stride[2], k_rows_, n, p_.head_dim, scores_);
      softmax_step(i, r, scores_, n, n, keys, k_begin, bias);
      add_weighted_rows<V>(scores_, v_rows_, n, p_.head_dim_v, out_ + r * width_v_);
    }
  }

  // Turns a row of products into probabilities relative to the running maximum, and rescales what
  // came before.
  void softmax_step(int64_t i, int64_t r, Acc* s, int64_t seen, int64_t n, const VisibleKeys& keys,
                    int64_t k_begin, ChunkBias<Acc>& bias) {
    const Acc chunk_top = finish_scores<V>(s, seen, static_cast<Acc>(p_.scale), bias.for_query(i));
    const Acc old_top = top_[r];
    const Acc new_top = chunk_top > old_top || chunk_top != chunk_top ? chunk_top : old_top;
    // Nothing visible yet: exponents of -inf - 0 give exact zeros, where -inf - (-inf) would give
    // NaN.
    const Acc shift = new_top == minus_infinity<Acc>() ? Acc(0) : new_top;
    const Acc sum = exponentiate<V>(s, seen, shift);
    for (int64_t x = round_up(seen, V::kLanes); x < round_up(n, V::kLanes); ++x) s[x] = 0;

    Acc* out = out_ + r * width_v_;
    if (old_top != new_top && sum_[r] != 0) {
      alignas(64) Acc lanes[V::kLanes];
      exp2_nonpositive(V::set1((old_top - shift) * static_cast<Acc>(kLog2E))).store(lanes);
      const Acc correction = lanes[0];
      sum_[r] *= correction;
      scale_row<V>(out, width_v_, correction);
      if (p_.mass)
        for (int x = 0; x < p_.num_sources; ++x) mass_[r * p_.num_sources + x] *= correction;
    }
    top_[r] = new_top;
    sum_[r] += sum;
    if (p_.mass) {
      for_each_stretch(
          p_, keys, k_begin, k_begin + seen, [&](int source, int64_t from, int64_t to, bool) {
            mass_[r * p_.num_sources + source] += sum_row<V>(s + from - k_begin, to - from);
          });
    }
  }

  // How many of n keys from k_begin on query i sees.
  int64_t seen_keys(const VisibleKeys& keys, int64_t i, int64_t k_begin, int64_t n) const {
    return p_.is_causal ? max_of(0, min_of(n, causal_prefix(p_, keys, i) - k_begin)) : n;
  }

  void finish(int64_t b, int64_t h, int64_t q_begin, int64_t panel) {
    T* out = static_cast<T*>(p_.out) + b * p_.out_stride[0] + h * p_.out_stride[1];
    const int64_t first_row = (b * p_.num_heads + h) * p_.seqlen_q + q_begin;
    for (int64_t r = 0; r < panel; ++r) {
      Acc* row = out_ + r * width_v_;
      const bool nothing = sum_[r] == 0;  // false for NaN, which has to be seen
      const Acc inverse = nothing ? Acc(0) : 1 / sum_[r];
      if (nothing) {
        for (int64_t x = 0; x < width_v_; ++x)
          row[x] = 0;  // not times 0: a value row may have been NaN
      } else {
        scale_row<V>(row, width_v_, inverse);
      }
      store_row<V>(row, p_.head_dim_v, out + (q_begin + r) * p_.out_stride[2]);
      if (p_.lse)
        static_cast<Acc*>(p_.lse)[first_row + r] =
            nothing ? minus_infinity<Acc>() : top_[r] + natural_log(sum_[r]);
      if (p_.row_top) {
        static_cast<Acc*>(p_.row_top)[first_row + r] = top_[r];
        static_cast<Acc*>(p_.row_sum)[first_row + r] = sum_[r];
      }
      if (p_.mass) {
        Acc* mass = static_cast<Acc*>(p_.mass) + (first_row + r) * p_.num_sources;
        for (int s = 0; s < p_.num_sources; ++s) mass[s] = mass_[r * p_.num_sources + s] * inverse;
      }
    }
  }

  const AttentionProblem& p_;
  TermKinds kinds_;
  Arena arena_;
  int64_t chunk_, block_, words_, width_v_, score_row_;
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_, **q_rows_;
  Word *k_packed_, *v_packed_, *q_packed_;
  Acc *scores_, *out_, *top_, *sum_, *mass_, *key_bias_, *row_bias_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
