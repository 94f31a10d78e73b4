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
#include "cpu/kernels/dropout.h"
#include "cpu/kernels/exp.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/row_total.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/tiling.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

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

// Floats [begin, end) of a row to words in place, for the operand of P V: words begin at element
// begin / kPerWord. The reader is ahead of the writer.
template <class E>
void words_in_place(typename E::Acc* row, int64_t begin, int64_t end) {
  using V = typename E::Vec;
  if constexpr (E::kPerWord == 2) {
    BFloat16* out = reinterpret_cast<BFloat16*>(row);
    for (int64_t x = begin; x < end; x += V::kLanes) V::load(row + x).store(out + x);
  }
}

// Zero on the whole vectors of [begin, end) that hold no key of `seen`.
template <class V>
void zero_around(typename V::Scalar* row, int64_t begin, int64_t end, Range seen) {
  const V zero = V::zero();
  const bool none = seen.empty();
  const int64_t left = none ? end : round_down(seen.begin, V::kLanes);
  for (int64_t x = begin; x < left; x += V::kLanes) zero.store(row + x);
  if (none) return;
  for (int64_t x = round_up(seen.end, V::kLanes); x < end; x += V::kLanes) zero.store(row + x);
}

// row[x] *= factors[x], 0 where dropped, whatever the row holds there.
template <class V>
void drop(typename V::Scalar* row, Range seen, const typename V::Scalar* factors) {
  for (int64_t x = seen.begin; x < seen.end; ++x)
    row[x] = factors[x] == 0 ? typename V::Scalar(0) : row[x] * factors[x];
}

template <class E>
class AttentionForward {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;
  using RowTotal = crossmodal::cpu::CROSSMODAL_ISA::RowTotal<Acc>;

 public:
  AttentionForward(const AttentionProblem& p, int64_t panel_rows, char* memory)
      : p_(p),
        kinds_(p),
        dropout_(p),
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
    kept_ = arena_.take<Acc>(dropout_.active() ? chunk_ : 0);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  void run(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const int64_t alive = max_of(q_begin, min_of(q_end, query_rows(p_, b).count));
    if (!p_.cu_seqlens_q) write_absent_rows(b, h, alive, q_end);
    if (alive > q_begin) run_alive(b, h, q_begin, alive);
  }

 private:
  void run_alive(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
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
    const Band band(p_, b);
    const Blocks chunks(keys.count, kForwardBlockN), blocks(panel, kForwardBlockM);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c);
      if (reach(band, keys, q_begin, q_end - 1, begin, end).empty()) continue;
      key_rows<T>(p_, keys, b, h, begin, end, k_rows_, v_rows_);
      bias.start_chunk(begin, end);
      if (has_few_queries(p_)) {
        few_queries_step(b, h, q_begin, q_end, keys, band, begin, end, bias);
        continue;
      }
      pack_transposed<E>(k_rows_, end - begin, p_.head_dim, k_packed_);
      pack_across_rows<E>(v_rows_, end - begin, p_.head_dim_v, v_packed_, width_v_);
      for (int64_t m = 0; m < blocks.count; ++m)
        step(b, h, q_begin + blocks.begin(m), q_begin + blocks.end(m), q_begin, keys, band, begin,
             end, bias);
    }
    finish(b, h, q_begin, panel);
  }

  const T* query_row(int64_t b, int64_t h, int64_t i) const {
    return row_at<const T>(p_.q, p_.q_stride, b, h, query_rows(p_, b).first + i);
  }

  // One block of queries against one chunk of keys.
  void step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end, int64_t q_begin,
            const VisibleKeys& keys, const Band& band, int64_t k_begin, int64_t k_end,
            ChunkBias<Acc>& bias) {
    const Range reached = reach(band, keys, i_begin, i_end - 1, k_begin, k_end);
    if (reached.empty()) return;
    const int64_t rows = i_end - i_begin;
    const T* q = query_row(b, h, i_begin);
    for (int64_t i = 0; i < rows; ++i) q_rows_[i] = q + i * p_.q_stride[2];
    pack_along_row<E>(q_rows_, rows, p_.head_dim, q_packed_, words_);
    gemm<E, Into::kStore>(rows, ceil_div(k_end - k_begin, V::kLanes), words_,
                          {q_packed_, words_, 1}, {k_packed_, true, 0}, scores_, score_row_,
                          reached.begin, reached.end);

    // Whole vectors of keys that some query of the block sees.
    const int64_t from = round_down(reached.begin, V::kLanes), to = reached.end;
    for (int64_t i = 0; i < rows; ++i) {
      Acc* s = scores_ + i * score_row_;
      const Range seen = reach(band, keys, i_begin + i, i_begin + i, k_begin, k_end);
      softmax_step(b, h, i_begin + i, i_begin + i - q_begin, s, seen, keys, k_begin, bias);
      zero_around<V>(s, from, round_up(to, V::kLanes), seen);
      words_in_place<E>(s, from, round_up(to, V::kLanes));
    }
    gemm<E, Into::kAdd>(
        rows, width_v_ / V::kLanes, words_for<E>(to - from),
        {reinterpret_cast<const Word*>(scores_) + from / E::kPerWord, score_row_, 1},
        {v_packed_ + from / E::kPerWord * width_v_, false, width_v_},
        out_ + (i_begin - q_begin) * width_v_, width_v_);
  }

  void few_queries_step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end,
                        const VisibleKeys& keys, const Band& band, int64_t k_begin, int64_t k_end,
                        ChunkBias<Acc>& bias) {
    for (int64_t i = i_begin; i < i_end; ++i) {
      const Range seen = reach(band, keys, i, i, k_begin, k_end);
      if (seen.empty()) continue;
      const int64_t r = i - i_begin;
      // From a whole vector on, as the softmax works.
      const int64_t from = round_down(seen.begin, V::kLanes);
      dot_with_rows<V>(query_row(b, h, i), k_rows_ + from, seen.end - from, p_.head_dim,
                       scores_ + from);
      softmax_step(b, h, i, r, scores_, seen, keys, k_begin, bias);
      add_weighted_rows<V>(scores_ + seen.begin, v_rows_ + seen.begin, seen.end - seen.begin,
                           p_.head_dim_v, out_ + r * width_v_);
    }
  }

  // Turns a row of products into probabilities relative to the running maximum, and rescales what
  // came before. Beyond the vectors of the keys seen the row is left as it is.
  void softmax_step(int64_t b, int64_t h, int64_t i, int64_t r, Acc* s, Range seen,
                    const VisibleKeys& keys, int64_t k_begin, ChunkBias<Acc>& bias) {
    if (seen.empty()) return;
    const Acc chunk_top = products_to_scores<V>(p_, s, seen, bias.for_query(i));
    const Acc old_top = top_[r];
    const Acc new_top = chunk_top > old_top || chunk_top != chunk_top ? chunk_top : old_top;
    // Nothing visible yet: exponents of -inf - 0 give exact zeros, where -inf - (-inf) would give
    // NaN.
    const Acc shift = new_top == minus_infinity<Acc>() ? Acc(0) : new_top;
    const int64_t from = round_down(seen.begin, V::kLanes);
    const Acc sum = exponentiate<V>(s + from, seen.end - from, shift);

    Acc* out = out_ + r * width_v_;
    if (old_top != new_top && sum_[r] != 0) {
      const Acc correction = exponential<V>(old_top - shift);
      sum_[r] *= correction;
      scale_row<V>(out, width_v_, correction);
      if (p_.mass)
        for (int x = 0; x < p_.num_sources; ++x) mass_[r * p_.num_sources + x] *= correction;
    }
    top_[r] = new_top;
    sum_[r] += sum;
    if (p_.mass) {
      for_each_stretch(
          p_, keys, k_begin + seen.begin, k_begin + seen.end,
          [&](int source, int64_t from, int64_t to, bool) {
            mass_[r * p_.num_sources + source] += sum_row<V>(s + from - k_begin, to - from);
          });
    }
    if (dropout_.active()) {
      dropout_.draw(b, h, i, keys, k_begin, seen, kept_);
      drop<V>(s, seen, kept_);
    }
  }

  void finish(int64_t b, int64_t h, int64_t q_begin, int64_t panel) {
    const int64_t first_row = row_index(p_, b, h, q_begin);
    for (int64_t r = 0; r < panel; ++r) {
      Acc* row = out_ + r * width_v_;
      const bool nothing = sum_[r] == 0;  // false for NaN, which has to be seen
      const RowTotal total = with_sink<V>(p_, b, h, top_[r], sum_[r]);
      if (nothing) {
        for (int64_t x = 0; x < width_v_; ++x)
          row[x] = 0;  // not times 0: a value row may have been NaN
      } else {
        scale_row<V>(row, width_v_, total.inverse);
      }
      store_row<V>(row, p_.head_dim_v, out_row(b, h, q_begin + r));
      write_statistics(first_row + r, total);
      if (p_.mass) {
        Acc* mass = static_cast<Acc*>(p_.mass) + (first_row + r) * p_.num_sources;
        for (int s = 0; s < p_.num_sources; ++s)
          mass[s] = nothing ? Acc(0) : mass_[r * p_.num_sources + s] * total.inverse;
      }
    }
  }

  // Queries at or beyond the sample's length: they see nothing, not even a sink.
  void write_absent_rows(int64_t b, int64_t h, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      zero_row(out_row(b, h, i), p_.head_dim_v);
      const int64_t row = row_index(p_, b, h, i);
      write_statistics(row, RowTotal::none());
      if (p_.mass)
        zero_row(static_cast<Acc*>(p_.mass) + row * p_.num_sources, p_.num_sources);
    }
  }

  T* out_row(int64_t b, int64_t h, int64_t i) const {
    return row_at<T>(p_.out, p_.out_stride, b, h, query_rows(p_, b).first + i);
  }

  void write_statistics(int64_t row, const RowTotal& total) {
    if (p_.lse) static_cast<Acc*>(p_.lse)[row] = total.lse;
    if (p_.row_top) {
      static_cast<Acc*>(p_.row_top)[row] = total.top;
      static_cast<Acc*>(p_.row_sum)[row] = total.sum;
    }
  }

  const AttentionProblem& p_;
  TermKinds kinds_;
  Dropout<Acc> dropout_;
  Arena arena_;
  int64_t chunk_, block_, words_, width_v_, score_row_;
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_, **q_rows_;
  Word *k_packed_, *v_packed_, *q_packed_;
  Acc *scores_, *out_, *top_, *sum_, *mass_, *key_bias_, *row_bias_, *kept_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
