// Backward of one (batch, head). P is recomputed from the maximum and the sum of each row, so that
// nothing of size L_q x L_k is kept:
//
//   for each chunk of visible keys:  pack K^T, V^T, K
//     for each block of queries:
//       P  = exp(S - top) / sum,  dP = dout V^T
//       dS = P * (dP + dmass - delta),  delta = rowsum(dout * out) + rowsum(dmass * mass) - dlse
//       dV += P^T dout;  dK += scale * dS^T Q;  dQ += scale * dS K;  bias gradients += dS
//
// (FlashAttention, Dao et al., 2022, algorithm 4; the terms of mass and lse follow from the same
// softmax Jacobian.)
#pragma once

#include <cstdint>

#include "cpu/kernels/attention_fwd.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class AttentionBackwardTask {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;
  // A gradient summed over several chunks needs an accumulator of its own where T is narrower than
  // Acc.
  static constexpr bool kNarrow = sizeof(T) < sizeof(Acc);

 public:
  AttentionBackwardTask(const AttentionProblem& p, const AttentionBackward& g, char* memory)
      : p_(p),
        g_(g),
        kinds_(p),
        arena_(memory),
        chunk_(min_of(p.total_keys, kBackwardBlockN)),
        block_(round_up(max_of(1, min_of(p.seqlen_q, kBackwardBlockM)), E::kPerWord)),
        words_(words_for<E>(p.head_dim)),
        words_v_(words_for<E>(p.head_dim_v)),
        width_(round_up(p.head_dim, V::kLanes)),
        width_v_(round_up(p.head_dim_v, V::kLanes)),
        score_row_(score_row<E>(chunk_)) {
    for (int s = 0; s < p.num_sources; ++s) {
      wants_dk_ |= p.sources[s].dk != nullptr;
      wants_dv_ |= p.sources[s].dv != nullptr;
    }
    const int64_t chunk_lanes = round_up(chunk_, V::kLanes);
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    k_rows_ = arena_.take<const T*>(chunk_);
    v_rows_ = arena_.take<const T*>(chunk_);
    q_rows_ = arena_.take<const T*>(block_);
    dout_rows_ = arena_.take<const T*>(block_);
    dead_ = arena_.take<bool>(block_);
    k_transposed_ = arena_.take<Word>(words_ * chunk_lanes);
    v_transposed_ = arena_.take<Word>(words_v_ * chunk_lanes);
    k_across_ = arena_.take<Word>(words_for<E>(chunk_) * width_);
    dk_ = arena_.take<Acc>(chunk_ * width_);
    dv_ = arena_.take<Acc>(chunk_ * width_v_);
    q_along_ = arena_.take<Word>(block_ * words_);
    q_across_ = arena_.take<Word>(words_for<E>(block_) * width_);
    dout_along_ = arena_.take<Word>(block_ * words_v_);
    dout_across_ = arena_.take<Word>(words_for<E>(block_) * width_v_);
    p_ij_ = arena_.take<Acc>(block_ * score_row_);
    ds_ij_ = arena_.take<Acc>(block_ * score_row_);
    if (E::kPerWord == 2) {
      p_pairs_ = arena_.take<Word>(block_ / 2 * score_row_);
      ds_pairs_ = arena_.take<Word>(block_ / 2 * score_row_);
    }
    dq_ = arena_.take<Acc>(block_ * width_);
    if (kNarrow && p.total_keys > kBackwardBlockN)
      dq_sum_ = arena_.take<Acc>(p.seqlen_q * p.head_dim);
    delta_ = arena_.take<Acc>(p.seqlen_q);
    dscore_ = arena_.take<Acc>(chunk_lanes);
    dmass_row_ = arena_.take<Acc>(chunk_lanes);
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  void run(int64_t partial, int64_t b, int64_t h) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    zero_hidden_gradients(keys, b, h);
    if (keys.count == 0) {
      if (g_.dq) zero_queries(b, h, 0, p_.seqlen_q);
      return;
    }
    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Blocks chunks(keys.count, kBackwardBlockN), blocks(p_.seqlen_q, block_);
    one_chunk_ = chunks.count == 1;
    start_delta(b, h, one_chunk_);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c), n = end - begin;
      key_rows<T>(p_, keys, b, h, begin, end, k_rows_, v_rows_);
      if (!has_few_queries(p_)) {
        pack_transposed<E>(k_rows_, n, p_.head_dim, k_transposed_);
        pack_transposed<E>(v_rows_, n, p_.head_dim_v, v_transposed_);
      }
      // dQ = dS K: where dS is 0 because the key is hidden from this query, a NaN in K must not
      // make it NaN. Queries that see the key have NaN in dS already.
      pack_across_rows<E, NonFinite::kZero>(k_rows_, n, p_.head_dim, k_across_, width_);
      bias.start_chunk(begin, end);
      for (int64_t x = 0; x < n * width_; ++x) dk_[x] = 0;
      for (int64_t x = 0; x < n * width_v_; ++x) dv_[x] = 0;
      for (int64_t m = 0; m < blocks.count; ++m) {
        const int64_t i_begin = blocks.begin(m), i_end = blocks.end(m);
        const bool reached = !p_.is_causal || causal_prefix(p_, keys, i_end - 1) > begin;
        if (reached) {
          step(partial, b, h, i_begin, i_end, keys, begin, end, bias);
        } else {
          for (int64_t x = 0; x < (i_end - i_begin) * width_; ++x) dq_[x] = 0;
        }
        if (g_.dq) add_dq(b, h, i_begin, i_end, c == 0, c + 1 == chunks.count);
      }
      store_key_gradients(keys, b, h, begin, end);
    }
  }

 private:
  int64_t row_index(int64_t b, int64_t h, int64_t i) const {
    return (b * p_.num_heads + h) * p_.seqlen_q + i;
  }
  // A query that sees nothing takes no part: its rows and its dout may hold anything.
  bool is_dead(int64_t b, int64_t h, int64_t i) const {
    return static_cast<const Acc*>(p_.row_sum)[row_index(b, h, i)] == 0;
  }
  const T* dout_row(int64_t b, int64_t h, int64_t i) const {
    return static_cast<const T*>(g_.dout) + b * g_.dout_stride[0] + h * g_.dout_stride[1] +
           i * g_.dout_stride[2];
  }
  T* dq_row(int64_t b, int64_t h, int64_t i) const {
    return static_cast<T*>(g_.dq) + b * g_.dq_stride[0] + h * g_.dq_stride[1] + i * g_.dq_stride[2];
  }

  // The part of delta that is known before the weights are: -dlse, and over several chunks of keys
  // also rowsum(dout * out) + rowsum(dmass * mass). Within one chunk the sum over the weights
  // themselves takes its place: out was rounded, and gradients of biases are small differences.
  void start_delta(int64_t b, int64_t h, bool one_chunk) {
    const T* out = static_cast<const T*>(p_.out) + b * p_.out_stride[0] + h * p_.out_stride[1];
    for (int64_t i = 0; i < p_.seqlen_q; ++i) {
      delta_[i] = 0;
      if (is_dead(b, h, i)) continue;
      const int64_t row = row_index(b, h, i);
      if (g_.dlse) delta_[i] = -static_cast<const Acc*>(g_.dlse)[row];
      if (one_chunk) continue;
      delta_[i] += dot_rows<V>(dout_row(b, h, i), out + i * p_.out_stride[2], p_.head_dim_v);
      if (g_.dmass)
        for (int64_t x = row * p_.num_sources; x < (row + 1) * p_.num_sources; ++x)
          delta_[i] += static_cast<const Acc*>(g_.dmass)[x] * static_cast<const Acc*>(p_.mass)[x];
    }
  }

  // One block of queries against one chunk of keys; leaves the block's share of dQ in dq_.
  void step(int64_t partial, int64_t b, int64_t h, int64_t i_begin, int64_t i_end,
            const VisibleKeys& keys, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t rows = i_end - i_begin, n = k_end - k_begin;
    const T* q = static_cast<const T*>(p_.q) + b * p_.q_stride[0] + h * p_.q_stride[1];
    for (int64_t i = 0; i < rows; ++i) {
      dead_[i] = is_dead(b, h, i_begin + i);
      q_rows_[i] = dead_[i] ? nullptr : q + (i_begin + i) * p_.q_stride[2];
      dout_rows_[i] = dead_[i] ? nullptr : dout_row(b, h, i_begin + i);
    }
    products(rows, n);
    for (int64_t i = 0; i < rows; ++i)
      softmax_gradient(partial, b, h, i_begin + i, p_ij_ + i * score_row_, ds_ij_ + i * score_row_,
                       keys, k_begin, k_end, bias);

    const Word *p_across, *ds_across, *ds_along;
    words_of_block(rows, n, &p_across, &ds_across, &ds_along);
    const int64_t row_words = words_for<E>(rows);
    if (wants_dv_) {
      pack_across_rows<E>(dout_rows_, rows, p_.head_dim_v, dout_across_, width_v_);
      gemm<E, Into::kAdd>(n, width_v_ / V::kLanes, row_words, {p_across, 1, score_row_},
                          {dout_across_, false, width_v_}, dv_, width_v_);
    }
    if (wants_dk_) {
      pack_across_rows<E>(q_rows_, rows, p_.head_dim, q_across_, width_);
      gemm<E, Into::kAdd>(n, width_ / V::kLanes, row_words, {ds_across, 1, score_row_},
                          {q_across_, false, width_}, dk_, width_);
    }
    if (g_.dq) {
      gemm<E, Into::kStore>(rows, width_ / V::kLanes, words_for<E>(n), {ds_along, score_row_, 1},
                            {k_across_, false, width_}, dq_, width_);
    }
  }

  // S = Q K^T into p_ij_, dP = dout V^T into ds_ij_. Rows of dead queries may hold anything finite.
  void products(int64_t rows, int64_t n) {
    if (has_few_queries(p_)) {
      for (int64_t i = 0; i < rows; ++i) {
        if (dead_[i]) continue;
        dot_with_rows<V>(q_rows_[i], k_rows_, n, p_.head_dim, p_ij_ + i * score_row_);
        dot_with_rows<V>(dout_rows_[i], v_rows_, n, p_.head_dim_v, ds_ij_ + i * score_row_);
      }
      return;
    }
    const int64_t vectors = ceil_div(n, V::kLanes);
    pack_along_row<E>(q_rows_, rows, p_.head_dim, q_along_, words_);
    pack_along_row<E>(dout_rows_, rows, p_.head_dim_v, dout_along_, words_v_);
    gemm<E, Into::kStore>(rows, vectors, words_, {q_along_, words_, 1}, {k_transposed_, true, 0},
                          p_ij_, score_row_);
    gemm<E, Into::kStore>(rows, vectors, words_v_, {dout_along_, words_v_, 1},
                          {v_transposed_, true, 0}, ds_ij_, score_row_);
  }

  // s: products -> P; ds: dP -> scale * dS. Both 0 for keys that query i does not see.
  void softmax_gradient(int64_t partial, int64_t b, int64_t h, int64_t i, Acc* s, Acc* ds,
                        const VisibleKeys& keys, int64_t k_begin, int64_t k_end,
                        ChunkBias<Acc>& bias) {
    const int64_t n = k_end - k_begin, lanes = round_up(n, V::kLanes);
    int64_t seen = n;
    if (p_.is_causal) seen = max_of(0, min_of(n, causal_prefix(p_, keys, i) - k_begin));
    if (is_dead(b, h, i)) seen = 0;
    const Acc* dmass = nullptr;
    if (g_.dmass) {
      const Acc* per_source =
          static_cast<const Acc*>(g_.dmass) + row_index(b, h, i) * p_.num_sources;
      for_each_stretch(p_, keys, k_begin, k_begin + seen,
                       [&](int source, int64_t from, int64_t to, bool) {
                         for (int64_t x = from; x < to; ++x)
                           dmass_row_[x - k_begin] = per_source[source];
                       });
      for (int64_t x = seen; x < lanes; ++x) dmass_row_[x] = 0;
      dmass = dmass_row_;
    }
    if (seen > 0) finish_scores<V>(s, seen, static_cast<Acc>(p_.scale), bias.for_query(i));

    const V zero = V::zero();
    int64_t x = 0;
    if (seen > 0) {
      const V delta = V::set1(rebuild_weights(row_index(b, h, i), i, s, ds, dmass, seen));
      const V scale = V::set1(static_cast<Acc>(p_.scale));
      for (; x < seen; x += V::kLanes) {
        const V weight = V::load(s + x);
        V gradient = V::load(ds + x) - delta;
        if (dmass) gradient = gradient + V::load(dmass + x);
        // By choice, not by 0 * gradient: behind a mask the gradient may be NaN.
        gradient = select_equal(weight, zero, zero, weight * gradient);
        if (kinds_.gradients) gradient.store(dscore_ + x);
        (gradient * scale).store(ds + x);
      }
    }
    for (; x < lanes; x += V::kLanes) {
      zero.store(s + x);
      zero.store(ds + x);
    }
    if (kinds_.gradients) add_term_gradients(partial, b, h, i, keys, k_begin, k_begin + seen);
  }

  // s: scores -> weights. Returns delta.
  Acc rebuild_weights(int64_t row, int64_t i, Acc* s, const Acc* dp, const Acc* dmass,
                      int64_t seen) {
    const V zero = V::zero(), log2e = V::set1(static_cast<Acc>(kLog2E));
    const V top = V::set1(static_cast<const Acc*>(p_.row_top)[row]);
    const V inverse = V::set1(1 / static_cast<const Acc*>(p_.row_sum)[row]);
    V sum = zero;
    for (int64_t x = 0; x < seen; x += V::kLanes) {
      const V exponential = exp2_nonpositive((V::load(s + x) - top) * log2e);
      // What is hidden stays 0 even in a row whose sum is NaN.
      const V weight = select_equal(exponential, zero, zero, exponential * inverse);
      weight.store(s + x);
      if (!one_chunk_) continue;
      const V gradient = dmass ? V::load(dp + x) + V::load(dmass + x) : V::load(dp + x);
      sum = sum + select_equal(weight, zero, zero, weight * gradient);
    }
    return delta_[i] + reduce_add(sum);
  }

  void add_term_gradients(int64_t partial, int64_t b, int64_t h, int64_t i, const VisibleKeys& keys,
                          int64_t k_begin, int64_t seen_end) {
    for_each_stretch(p_, keys, k_begin, seen_end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       const KeySource& source = p_.sources[s];
                       for (int t = 0; t < source.num_terms; ++t)
                         if (source.terms[t].grad)
                           add_term_gradient<V>(source.terms[t], partial, b, h, i, keys.rows + from,
                                                to - from, contiguous, dscore_ + (from - k_begin));
                     });
  }

  // The three forms in which P and dS enter the products. With one element per word they are the
  // arrays themselves.
  void words_of_block(int64_t rows, int64_t n, const Word** p_across, const Word** ds_across,
                      const Word** ds_along) {
    if constexpr (E::kPerWord == 1) {
      *p_across = p_ij_;
      *ds_across = *ds_along = ds_ij_;
    } else {
      const int64_t lanes = round_up(n, V::kLanes);
      for (int64_t i = 0; i < rows; i += 2) {
        for (int64_t x = 0; x < lanes; x += V::kLanes) {
          const bool two = i + 1 < rows;
          const Acc *p = p_ij_ + i * score_row_ + x, *ds = ds_ij_ + i * score_row_ + x;
          store_pairs(V::load(p), two ? V::load(p + score_row_) : V::zero(),
                      p_pairs_ + i / 2 * score_row_ + x);
          store_pairs(V::load(ds), two ? V::load(ds + score_row_) : V::zero(),
                      ds_pairs_ + i / 2 * score_row_ + x);
        }
      }
      for (int64_t i = 0; i < rows; ++i) words_in_place<E>(ds_ij_ + i * score_row_, lanes);
      *p_across = p_pairs_;
      *ds_across = ds_pairs_;
      *ds_along = reinterpret_cast<const Word*>(ds_ij_);
    }
  }

  void add_dq(int64_t b, int64_t h, int64_t i_begin, int64_t i_end, bool first, bool last) {
    for (int64_t i = i_begin; i < i_end; ++i) {
      Acc* block_row = dq_ + (i - i_begin) * width_;
      if (first && last) {
        store_row<V>(block_row, p_.head_dim, dq_row(b, h, i));
      } else if constexpr (kNarrow) {
        Acc* sum = dq_sum_ + i * p_.head_dim;
        for (int64_t d = 0; d < p_.head_dim; ++d)
          sum[d] = first ? block_row[d] : sum[d] + block_row[d];
        if (last) store_row<V>(sum, p_.head_dim, dq_row(b, h, i));
      } else {
        T* sum = dq_row(b, h, i);
        for (int64_t d = 0; d < p_.head_dim; ++d)
          sum[d] = first ? block_row[d] : sum[d] + block_row[d];
      }
    }
  }

  void zero_queries(int64_t b, int64_t h, int64_t i_begin, int64_t i_end) {
    for (int64_t i = i_begin; i < i_end; ++i)
      std::memset(dq_row(b, h, i), 0, p_.head_dim * sizeof(T));
  }

  T* gradient_row(void* base, const int64_t* stride, int64_t b, int64_t h, int64_t j) const {
    return static_cast<T*>(base) + b * stride[0] + h * stride[1] + j * stride[2];
  }

  // Keys that are not in the list have gradient 0.
  void zero_hidden_gradients(const VisibleKeys& keys, int64_t b, int64_t h) {
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      int64_t next = keys.segments[s].begin;
      for (int64_t j = 0; j < source.seqlen_k; ++j) {
        if (next < keys.segments[s].end && keys.rows[next] == j) {
          ++next;
          continue;
        }
        if (source.dk)
          std::memset(gradient_row(source.dk, source.dk_stride, b, h, j), 0,
                      p_.head_dim * sizeof(T));
        if (source.dv)
          std::memset(gradient_row(source.dv, source.dv_stride, b, h, j), 0,
                      p_.head_dim_v * sizeof(T));
      }
    }
  }

  void store_key_gradients(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin,
                           int64_t k_end) {
    for_each_stretch(p_, keys, k_begin, k_end, [&](int s, int64_t from, int64_t to, bool) {
      const KeySource& source = p_.sources[s];
      for (int64_t j = from; j < to; ++j) {
        const int64_t row = keys.rows[j], x = j - k_begin;
        if (source.dk)
          store_row<V>(dk_ + x * width_, p_.head_dim,
                       gradient_row(source.dk, source.dk_stride, b, h, row));
        if (source.dv)
          store_row<V>(dv_ + x * width_v_, p_.head_dim_v,
                       gradient_row(source.dv, source.dv_stride, b, h, row));
      }
    });
  }

  const AttentionProblem& p_;
  const AttentionBackward& g_;
  TermKinds kinds_;
  Arena arena_;
  int64_t chunk_, block_, words_, words_v_, width_, width_v_, score_row_;
  bool wants_dk_ = false, wants_dv_ = false, one_chunk_ = true;
  int32_t* rows_;
  Segment* segments_;
  bool* dead_;
  const T **k_rows_, **v_rows_, **q_rows_, **dout_rows_;
  Word *k_transposed_, *v_transposed_, *k_across_, *q_along_, *q_across_, *dout_along_,
      *dout_across_;
  Word *p_pairs_ = nullptr, *ds_pairs_ = nullptr;
  Acc *dk_, *dv_, *p_ij_, *ds_ij_, *dq_, *dq_sum_ = nullptr, *delta_, *dscore_, *dmass_row_,
                                         *key_bias_, *row_bias_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
