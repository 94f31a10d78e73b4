// Backward of backward, of one (batch, head). Backward returned
//
//   dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dout,  dterm = dS,
//   with dS = P (dP - delta),  dP = dout V^T,  delta = rowsum(P dP) - dlse.
//
// What flows back to these, a = ddQ, b = ddK, c = ddV and e = ddterm, meets S and P in
//
//   T = scale (a K^T + Q b^T) + e,   U = dout c^T,   tau = rowsum(P T)
//   R  = P (T - tau)                                  the gradient of dP; that of dlse is tau
//   G  = P ((dP - delta) (T - tau) + U - gamma)       the gradient of S, its row sums 0 by gamma
//   ddout = R V + P c,  grad V = R^T dout,  grad Q = scale (G K + dS b),
//   grad K = scale (G^T Q + dS^T a),  grad term = G
//
// in blocks of queries against chunks of keys, as in backward: nothing of size L_q x L_k is kept.
// Row sums are known within one chunk; over several, a first pass over all finds them. Dropout acts
// on dP, U, and the P and R that meet V and c; mass adds what flows back to it to dP; a sink is one
// more key whose dP and U are 0; the soft cap f adds its slope: T = f' scale (...) + e, and G
// becomes f' G + f'' dS scale (...).
#pragma once

#include <cstdint>

#include "core/double_backward.h"
#include "cpu/kernels/arena.h"
#include "cpu/kernels/attention_fwd.h"
#include "cpu/kernels/block_operands.h"
#include "cpu/kernels/key_gradients.h"
#include "cpu/kernels/query_gradient.h"
#include "cpu/kernels/rebuilt_weights.h"
#include "cpu/kernels/row_moments.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class AttentionDoubleBackwardTask {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

 public:
  AttentionDoubleBackwardTask(const AttentionProblem& p, const AttentionDoubleBackward& g,
                              char* memory)
      : p_(p),
        g_(g),
        kinds_(p),
        plain_(scores_are_plain(p, kinds_, p.scale)),
        weights_(p, plain_, p.scale),
        dropout_(p),
        arena_(memory),
        key_gradients_(p, &arena_),
        dq_to_(p, g.dq, g.dq_stride, p.head_dim, p.total_keys > kDoubleBackwardBlockN, &arena_),
        ddout_to_(p, g.ddout, g.ddout_stride, p.head_dim_v, p.total_keys > kDoubleBackwardBlockN,
                  &arena_),
        chunk_(min_of(p.total_keys, kDoubleBackwardBlockN)),
        block_(round_up(max_of(1, min_of(p.seqlen_q, kDoubleBackwardBlockM)), E::kPerWord)),
        width_(round_up(p.head_dim, V::kLanes)),
        width_v_(round_up(p.head_dim_v, V::kLanes)),
        score_row_(score_row<E>(chunk_)) {
    for (int s = 0; s < p.num_sources; ++s) {
      has_ddk_ |= g.sources[s].ddk.data != nullptr;
      has_ddv_ |= g.sources[s].ddv.data != nullptr;
      for (int t = 0; t < p.sources[s].num_terms; ++t)
        has_ddterms_ |= g.sources[s].ddterms[t].data != nullptr;
    }
    const int64_t chunk_lanes = round_up(chunk_, V::kLanes);
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    dead_ = arena_.take<bool>(block_);
    moments_ = arena_.take<RowMoments<Acc>>(p.seqlen_q);
    zeros_ = arena_.take<T>(max_of(width_, width_v_));
    take_keys(p.head_dim, width_, &k_);
    take_keys(p.head_dim_v, width_v_, &v_);
    take_keys(has_ddk_ ? p.head_dim : 0, width_, &ddk_);
    take_keys(has_ddv_ ? p.head_dim_v : 0, width_v_, &ddv_);
    take_queries({p.q, {p.q_stride[0], p.q_stride[1], p.q_stride[2]}}, p.head_dim, &q_);
    take_queries(g.dout, p.head_dim_v, &dout_);
    take_queries(g.ddq, p.head_dim, &ddq_);
    dk_ = arena_.take<Acc>(chunk_ * width_);
    dv_ = arena_.take<Acc>(chunk_ * width_v_);
    share_ = arena_.take<Acc>(block_ * max_of(width_, width_v_));
    for (Acc** scores : {&p_ij_, &ds_ij_, &r_ij_, &g_ij_})
      *scores = arena_.take<Acc>(block_ * score_row_);
    if (E::kPerWord == 2)
      for (Word** pairs : {&ds_pairs_, &r_pairs_, &g_pairs_})
        *pairs = arena_.take<Word>(block_ / 2 * score_row_);
    for (Acc** row : {&key_bias_, &row_bias_, &g_row_, &e_row_, &kept_, &dmass_row_, &slope_,
                      &curvature_, &product_})
      *row = arena_.take<Acc>(chunk_lanes);
    if (arena_.has_memory()) zero_row(zeros_, max_of(width_, width_v_));
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Pairs (batch, head) [begin, end); gradients of terms go to accumulator `partial`.
  void run(int64_t partial, int64_t begin, int64_t end) {
    partial_ = partial;
    for (int64_t pair = begin; pair < end; ++pair)
      run_head(pair / p_.num_heads, pair % p_.num_heads);
  }

 private:
  // One of K, V, ddK and ddV: rows of the chunk, and their two operands.
  struct Keys {
    const T** rows;
    Word *transposed, *packed;
    OperandB<E> across;
  };
  // One of Q, dout and ddQ: rows of the block, and memory for their two operands.
  struct Queries {
    RowsLike from;
    int64_t width;
    const T** rows;
    Word *along, *across;
  };

  void take_keys(int64_t width, int64_t ld, Keys* keys) {
    keys->rows = arena_.take<const T*>(chunk_);
    keys->transposed = arena_.take<Word>(words_for<E>(width) * round_up(chunk_, V::kLanes));
    keys->packed = arena_.take<Word>(width ? words_for<E>(chunk_) * ld : 0);
  }

  void take_queries(const RowsLike& from, int64_t width, Queries* queries) {
    const int64_t n = from.data ? block_ : 0;
    *queries = {from, width, arena_.take<const T*>(n), arena_.take<Word>(n * words_for<E>(width)),
                arena_.take<Word>(words_for<E>(n) * round_up(width, V::kLanes))};
  }

  void run_head(int64_t b, int64_t h) {
    b_ = b;
    h_ = h;
    dsink_ = 0;
    queries_ = query_rows(p_, b);
    few_queries_ = has_few_queries(p_, plain_, b);
    dq_to_.start(b, h);
    ddout_to_.start(b, h);
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    key_gradients_.start(keys, b, h);
    const Blocks chunks(keys.count, kDoubleBackwardBlockN);
    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Band band(p_, b);
    start_rows();
    if (keys.count == 0) {
      if (dq_to_.wanted()) dq_to_.zero(0, queries_.count);
      if (ddout_to_.wanted()) ddout_to_.zero(0, queries_.count);
    }
    one_chunk_ = chunks.count <= 1;
    if (!one_chunk_) each_chunk(keys, chunks, band, bias, Pass::kMoments);
    each_chunk(keys, chunks, band, bias, Pass::kGradients);
    key_gradients_.finish(b, h);
    finish_rows();
  }

  enum class Pass { kMoments, kGradients };

  void each_chunk(const VisibleKeys& keys, const Blocks& chunks, const Band& band,
                  ChunkBias<Acc>& bias, Pass pass) {
    const Blocks blocks(queries_.count, block_);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c), n = end - begin;
      all_seen_ = plain_ && band.open;
      pack_chunk(keys, {begin, end}, pass);
      bias.start_chunk(begin, end);
      dk_to_ = key_gradients_.dk_in_place(keys, b_, h_, begin, end, {dk_, width_});
      dv_to_ = key_gradients_.dv_in_place(keys, b_, h_, begin, end, {dv_, width_v_});
      // The first block stores, the others add; unless a band may leave keys out of the first.
      started_ = !band.open || blocks.count == 0;
      if (started_ && pass == Pass::kGradients) {
        dk_to_.zero(n, width_);
        dv_to_.zero(n, width_v_);
      }
      for (int64_t m = 0; m < blocks.count; ++m) {
        const int64_t i_begin = blocks.begin(m), i_end = blocks.end(m);
        const Range reached = reach(band, keys, i_begin, i_end - 1, begin, end);
        if (pass == Pass::kMoments) {
          if (!reached.empty()) moments_step(i_begin, i_end, keys, band, reached, begin, end, bias);
          continue;
        }
        const bool first = c == 0, last = c + 1 == chunks.count;
        gradients_step(i_begin, i_end, keys, band, reached, begin, end, bias, first, last);
        started_ = true;
      }
      if (pass == Pass::kGradients)
        key_gradients_.add(keys, b_, h_, begin, end, dk_to_.data == dk_ ? dk_ : nullptr, width_,
                           dv_to_.data == dv_ ? dv_ : nullptr, width_v_);
    }
  }

  void pack_chunk(const VisibleKeys& keys, Range chunk, Pass pass) {
    const int64_t n = chunk.end - chunk.begin;
    key_rows<T>(p_, keys, b_, h_, chunk.begin, chunk.end, k_.rows, v_.rows);
    for_each_stretch(p_, keys, chunk.begin, chunk.end, [&](int s, int64_t from, int64_t to, bool) {
      cotangent_rows(s, g_.sources[s].ddk, keys, from, to, ddk_.rows + (from - chunk.begin));
      cotangent_rows(s, g_.sources[s].ddv, keys, from, to, ddv_.rows + (from - chunk.begin));
    });
    pack_transposed<E>(k_.rows, n, p_.head_dim, k_.transposed);
    pack_transposed<E>(v_.rows, n, p_.head_dim_v, v_.transposed);
    if (has_ddk_) pack_transposed<E>(ddk_.rows, n, p_.head_dim, ddk_.transposed);
    if (has_ddv_) pack_transposed<E>(ddv_.rows, n, p_.head_dim_v, ddv_.transposed);
    if (pass == Pass::kMoments) return;
    const int only = only_source(keys, chunk);
    const auto stride = [&](const RowsLike& rows) { return rows.data ? rows.stride[2] : 0; };
    const int64_t at = max_of(only, 0);
    if (dq_to_.wanted()) {
      // Where a weight is 0 because the key is hidden from this query, a NaN in K must not make the
      // product NaN; queries that see the key have NaN in G already.
      put_across<NonFinite::kZero>(n, p_.head_dim, width_, only >= 0 && all_seen_,
                                   p_.sources[at].k_stride[2], &k_);
      if (has_ddk_)
        put_across<NonFinite::kZero>(n, p_.head_dim, width_, only >= 0 && all_seen_,
                                     stride(g_.sources[at].ddk), &ddk_);
    }
    if (ddout_to_.wanted()) {
      put_across<NonFinite::kKeep>(n, p_.head_dim_v, width_v_, only >= 0,
                                   p_.sources[at].v_stride[2], &v_);
      if (has_ddv_)
        put_across<NonFinite::kKeep>(n, p_.head_dim_v, width_v_, only >= 0,
                                     stride(g_.sources[at].ddv), &ddv_);
    }
  }

  // Rows of what flows back to the keys or values [from, to) of the list, all of source s.
  void cotangent_rows(int s, const RowsLike& rows, const VisibleKeys& keys, int64_t from,
                      int64_t to, const T** out) const {
    if (!rows.data) {
      for (int64_t j = from; j < to; ++j) out[j - from] = zeros_;
      return;
    }
    const KeySource& source = p_.sources[s];
    const T* first = row_at<const T>(rows.data, rows.stride, b_, key_head(p_, source, h_),
                                     key_rows_of(source, b_).first);
    for (int64_t j = from; j < to; ++j) out[j - from] = first + keys.rows[j] * rows.stride[2];
  }

  // The source that holds all of the chunk in neighbouring rows, or -1.
  int only_source(const VisibleKeys& keys, Range chunk) const {
    for (int s = 0; s < p_.num_sources; ++s) {
      const Segment& segment = keys.segments[s];
      if (segment.begin <= chunk.begin && chunk.end <= segment.end && segment.contiguous) return s;
    }
    return -1;
  }

  template <NonFinite kNonFinite>
  void put_across(int64_t n, int64_t width, int64_t ld, bool may_stand, int64_t stride,
                  Keys* keys) {
    if (may_stand && rows_are_vectors_of<E>(width)) {
      keys->across = {reinterpret_cast<const Word*>(keys->rows[0]), false, stride};
      return;
    }
    pack_across_rows<E, kNonFinite>(keys->rows, n, width, keys->packed, ld);
    keys->across = {keys->packed, false, ld};
  }

  int64_t row_of(int64_t i) const { return row_index(p_, b_, h_, i); }
  // A query that sees nothing takes no part: its rows and what flows into it may hold anything.
  bool is_dead(int64_t i) const { return static_cast<const Acc*>(p_.row_sum)[row_of(i)] == 0; }

  // Of the sink: its weight in row i, and what flows back to its gradient.
  Acc sink_weight(int64_t i) const {
    const Acc sink = sink_of<Acc>(p_, b_, h_);
    if (sink == minus_infinity<Acc>()) return 0;
    return exp_scalar<V>(sink - static_cast<const Acc*>(p_.row_top)[row_of(i)]) /
           static_cast<const Acc*>(p_.row_sum)[row_of(i)];
  }
  Acc ddsink() const {
    return g_.ddsink ? static_cast<const Acc*>(g_.ddsink)[b_ * g_.ddsink_stride + h_] : Acc(0);
  }

  void start_rows() {
    for (int64_t i = 0; i < queries_.count; ++i) {
      moments_[i] = {};
      if (!p_.sink || is_dead(i)) continue;
      const Acc weight = sink_weight(i);
      moments_[i] = {weight, 0, weight * ddsink(), 0, 0};
    }
    if (!g_.ddmass) return;
    zero_row(static_cast<Acc*>(g_.ddmass) + row_of(0) * p_.num_sources,
             p_.seqlen_q * p_.num_sources);
  }

  Acc dlse_of(int64_t i) const {
    return g_.dlse ? static_cast<const Acc*>(g_.dlse)[row_of(i)] : Acc(0);
  }
  // gamma: the mean over the row of what comes back through P.
  static Acc gamma(const RowMoments<Acc>& m) { return m.covariance + m.u; }

  // After the last chunk moments are those of whole rows.
  void finish_rows() {
    Acc* ddlse = static_cast<Acc*>(g_.ddlse);
    for (int64_t i = 0; i < queries_.count; ++i) {
      const RowMoments<Acc>& m = moments_[i];
      if (is_dead(i)) {
        // Where only the sink is left, it is lse, and dlse went to its gradient.
        const bool sink_alone =
            static_cast<const Acc*>(p_.row_top)[row_of(i)] != minus_infinity<Acc>();
        if (ddlse) ddlse[row_of(i)] = sink_alone ? ddsink() : Acc(0);
        continue;
      }
      if (ddlse) ddlse[row_of(i)] = m.t;
      if (g_.dsink)
        dsink_ += static_cast<double>(sink_weight(i)) *
                  ((dlse_of(i) - m.dp) * (ddsink() - m.t) - gamma(m));
    }
    if (ddlse && !p_.cu_seqlens_q) {
      for (int64_t i = queries_.count; i < p_.seqlen_q; ++i) ddlse[row_of(i)] = 0;
    }
    if (g_.dsink) g_.dsink[b_ * p_.num_heads + h_] = dsink_;
  }

  void take_rows(int64_t i_begin, int64_t rows) {
    any_dead_ = false;
    for (int64_t i = 0; i < rows; ++i) {
      dead_[i] = is_dead(i_begin + i);
      any_dead_ |= dead_[i];
    }
    for (Queries* queries : {&q_, &dout_, &ddq_}) {
      if (!queries->from.data) continue;
      for (int64_t i = 0; i < rows; ++i)
        queries->rows[i] = dead_[i] ? nullptr
                                    : row_at<const T>(queries->from.data, queries->from.stride, b_,
                                                      h_, queries_.first + i_begin + i);
    }
  }

  QueryRows<E> block_of(const Queries& x, int64_t rows) const {
    return {x.rows, rows, any_dead_, x.from.data, x.from.stride, x.width};
  }

  // S, dP, T without its factor and U of a block, in the arrays of P, dS, R and G.
  void products(int64_t rows, int64_t n, Range reached) {
    const int64_t vectors = ceil_div(n, V::kLanes), words = words_for<E>(p_.head_dim),
                  words_v = words_for<E>(p_.head_dim_v);
    const OperandA<E> q = block_of(q_, rows).along(q_.along, words),
                      dout = block_of(dout_, rows).along(dout_.along, words_v);
    if (few_queries_) {
      // As forward formed them.
      for (int64_t i = 0; i < rows; ++i)
        if (!dead_[i])
          dot_with_rows<V>(q_.rows[i], k_.rows, n, p_.head_dim, p_ij_ + i * score_row_);
    } else {
      gemm<E, Into::kStore>(rows, vectors, words, q, {k_.transposed, true, 0}, p_ij_, score_row_,
                            reached);
    }
    gemm<E, Into::kStore>(rows, vectors, words_v, dout, {v_.transposed, true, 0}, ds_ij_,
                          score_row_, reached);
    if (ddq_.from.data)
      gemm<E, Into::kStore>(rows, vectors, words, block_of(ddq_, rows).along(ddq_.along, words),
                            {k_.transposed, true, 0}, r_ij_, score_row_, reached);
    if (has_ddk_ && ddq_.from.data)
      gemm<E, Into::kAdd>(rows, vectors, words, q, {ddk_.transposed, true, 0}, r_ij_, score_row_,
                          reached);
    if (has_ddk_ && !ddq_.from.data)
      gemm<E, Into::kStore>(rows, vectors, words, q, {ddk_.transposed, true, 0}, r_ij_, score_row_,
                            reached);
    if (has_ddv_)
      gemm<E, Into::kStore>(rows, vectors, words_v, dout, {ddv_.transposed, true, 0}, g_ij_,
                            score_row_, reached);
  }

  // The four rows of one query in a block.
  struct Row {
    Acc *p, *dp, *t, *u;
  };
  Row row_in_block(int64_t i) const {
    return {p_ij_ + i * score_row_, ds_ij_ + i * score_row_, r_ij_ + i * score_row_,
            g_ij_ + i * score_row_};
  }

  // Products of query i -> P, dP, T and U for the keys seen.
  void rebuild(int64_t i, const Row& row, Range seen, const VisibleKeys& keys, int64_t k_begin,
               int64_t k_end, ChunkBias<Acc>& bias) {
    if (p_.softcap > 0) curve(row.p, seen);
    weights_.run(i, row_of(i), row.p, seen, bias, slope_);
    const int64_t begin = round_down(seen.begin, V::kLanes), end = round_up(seen.end, V::kLanes);
    if (!has_ddv_) zero_row(row.u + begin, end - begin);
    if (!has_ddk_ && !ddq_.from.data) zero_row(row.t + begin, end - begin);
    if (dropout_.active()) {
      dropout_.draw(b_, h_, i, keys, k_begin, seen, kept_);
      drop<V>(row.dp, seen, kept_);
      drop<V>(row.u, seen, kept_);
    }
    if (g_.dmass) {
      spread_over_keys<V>(p_, keys, k_begin, seen,
                          static_cast<const Acc*>(g_.dmass) + row_of(i) * p_.num_sources,
                          dmass_row_);
      for (int64_t x = begin; x < end; x += V::kLanes)
        (V::load(row.dp + x) + V::load(dmass_row_ + x)).store(row.dp + x);
    }
    if (has_ddterms_) read_ddterms(i, keys, k_begin, k_end);
    const V scale = V::set1(static_cast<Acc>(p_.scale));
    for (int64_t x = begin; x < end; x += V::kLanes) {
      V t = V::load(row.t + x) * scale;
      if (p_.softcap > 0) {
        t.store(product_ + x);
        t = t * V::load(slope_ + x);
      }
      if (has_ddterms_) t = t + V::load(e_row_ + x);
      t.store(row.t + x);
    }
  }

  // The second derivative of the soft cap, c tanh(s / c), at the products.
  void curve(const Acc* products, Range seen) {
    const V scale = V::set1(static_cast<Acc>(p_.scale)),
            cap = V::set1(static_cast<Acc>(p_.softcap)),
            factor = V::set1(static_cast<Acc>(-2 / (p_.softcap * p_.softcap)));
    for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
      const Capped<V> capped = soft_cap(scale * V::load(products + x), cap);
      (factor * capped.value * capped.slope).store(curvature_ + x);
    }
  }

  // What flows back to the gradients of terms, of query i against the chunk.
  void read_ddterms(int64_t i, const VisibleKeys& keys, int64_t k_begin, int64_t k_end) {
    zero_row(e_row_, round_up(k_end - k_begin, V::kLanes));
    for_each_stretch(p_, keys, k_begin, k_end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       for (int t = 0; t < p_.sources[s].num_terms; ++t) {
                         const ScoreTerm& e = g_.sources[s].ddterms[t];
                         if (e.data)
                           add_term<Acc>(e, b_, h_, i, keys.rows + from, to - from, contiguous,
                                         e_row_ + (from - k_begin));
                       }
                     });
  }

  void moments_step(int64_t i_begin, int64_t i_end, const VisibleKeys& keys, const Band& band,
                    Range reached, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t rows = i_end - i_begin;
    take_rows(i_begin, rows);
    products(rows, k_end - k_begin, reached);
    for (int64_t i = 0; i < rows; ++i) {
      const Range seen = reach(band, keys, i_begin + i, i_begin + i, k_begin, k_end);
      if (dead_[i] || seen.empty()) continue;
      const Row row = row_in_block(i);
      rebuild(i_begin + i, row, seen, keys, k_begin, k_end, bias);
      moments_[i_begin + i].add(moments_of<V>(row.p, row.dp, row.t, row.u, seen));
    }
  }

  void gradients_step(int64_t i_begin, int64_t i_end, const VisibleKeys& keys, const Band& band,
                      Range reached, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias,
                      bool first, bool last) {
    const int64_t rows = i_end - i_begin;
    take_rows(i_begin, rows);
    // Whole vectors of keys that some query of the block sees.
    const int64_t from = round_down(reached.begin, V::kLanes),
                  n = reached.empty() ? 0 : reached.end - from;
    if (n > 0) {
      products(rows, k_end - k_begin, reached);
      gradients_of_rows(i_begin, rows, keys, band, {from, from + n}, k_begin, k_end, bias);
      add_to_keys(rows, from, n);
    }
    if (dq_to_.wanted()) {
      product_of_keys(rows, from, n, width_, g_ij_, k_, has_ddk_ ? &ddk_ : nullptr, ds_ij_);
      dq_to_.add(i_begin, i_end, share_, width_, first, last);
    }
    if (ddout_to_.wanted()) {
      product_of_keys(rows, from, n, width_v_, r_ij_, v_, has_ddv_ ? &ddv_ : nullptr, p_ij_);
      ddout_to_.add(i_begin, i_end, share_, width_v_, first, last);
    }
  }

  // P, dS, R and G of a block of queries, in words, for the keys of `span`.
  void gradients_of_rows(int64_t i_begin, int64_t rows, const VisibleKeys& keys, const Band& band,
                         Range span, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t end = round_up(span.end, V::kLanes);
    for (int64_t i = 0; i < rows; ++i) {
      const Row row = row_in_block(i);
      Range seen = reach(band, keys, i_begin + i, i_begin + i, k_begin, k_end);
      if (dead_[i]) seen = {0, 0};
      if (!seen.empty()) {
        rebuild(i_begin + i, row, seen, keys, k_begin, k_end, bias);
        if (one_chunk_) moments_[i_begin + i].add(moments_of<V>(row.p, row.dp, row.t, row.u, seen));
        gradients_of_row(i_begin + i, row, seen, keys, k_begin);
      }
      for (Acc* x : {row.p, row.dp, row.t, row.u}) zero_around<V>(x, span.begin, end, seen);
      if (E::kPerWord == 2 && (i % 2 == 1 || i + 1 == rows))
        words_of_pair(i / 2, i % 2 == 1, span.begin, end);
    }
  }

  // dP -> scale dS, T -> R, U -> scale G.
  void gradients_of_row(int64_t i, const Row& row, Range seen, const VisibleKeys& keys,
                        int64_t k_begin) {
    const RowMoments<Acc>& m = moments_[i];
    const V zero = V::zero(), delta = V::set1(m.dp - dlse_of(i)), tau = V::set1(m.t),
            mean = V::set1(gamma(m)), scale = V::set1(static_cast<Acc>(p_.scale));
    for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
      const V weight = V::load(row.p + x);
      const V d = V::load(row.dp + x) - delta, t = V::load(row.t + x) - tau;
      // By choice, not by 0 * anything: behind a mask the rest may be NaN.
      V ds = select_equal(weight, zero, zero, weight * d);
      V g = select_equal(weight, zero, zero, weight * (fmadd(d, t, V::load(row.u + x)) - mean));
      select_equal(weight, zero, zero, weight * t).store(row.t + x);
      if (kinds_.gradients) g.store(g_row_ + x);
      if (p_.softcap > 0) {
        const V bend = V::load(product_ + x) * V::load(curvature_ + x), slope = V::load(slope_ + x);
        g = select_equal(weight, zero, zero, fmadd(g, slope, ds * bend));
        ds = select_equal(weight, zero, zero, ds * slope);
      }
      (ds * scale).store(row.dp + x);
      (g * scale).store(row.u + x);
    }
    if (kinds_.gradients) add_term_gradients(i, keys, k_begin, seen);
    if (g_.ddmass) add_to_mass(i, row.t, keys, k_begin, seen);
    if (!dropout_.active()) return;
    drop<V>(row.p, seen, kept_);
    drop<V>(row.t, seen, kept_);
  }

  void add_term_gradients(int64_t i, const VisibleKeys& keys, int64_t k_begin, Range seen) {
    for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       const KeySource& source = p_.sources[s];
                       for (int t = 0; t < source.num_terms; ++t)
                         if (source.terms[t].grad)
                           add_term_gradient<V>(source.terms[t], partial_, b_, h_, i,
                                                keys.rows + from, to - from, contiguous,
                                                g_row_ + (from - k_begin));
                     });
  }

  void add_to_mass(int64_t i, const Acc* r, const VisibleKeys& keys, int64_t k_begin, Range seen) {
    Acc* per_source = static_cast<Acc*>(g_.ddmass) + row_of(i) * p_.num_sources;
    for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                     [&](int s, int64_t from, int64_t to, bool) {
                       per_source[s] += sum_row<V>(r + (from - k_begin), to - from);
                     });
  }

  // The words in which two rows enter the products, for the keys [from, end): across queries but
  // for P, along keys in place.
  void words_of_pair(int64_t pair, bool two, int64_t from, int64_t end) {
    if constexpr (E::kPerWord == 2) {
      const auto across = [&](const Acc* rows, Word* pairs) {
        const Acc* row = rows + 2 * pair * score_row_;
        for (int64_t x = from; x < end; x += V::kLanes)
          store_pairs(V::load(row + x), two ? V::load(row + score_row_ + x) : V::zero(),
                      pairs + pair * score_row_ + x);
      };
      across(ds_ij_, ds_pairs_);
      across(r_ij_, r_pairs_);
      across(g_ij_, g_pairs_);
      for (int64_t i = 2 * pair; i < 2 * pair + 1 + two; ++i)
        for (Acc* rows : {p_ij_, ds_ij_, r_ij_, g_ij_})
          words_in_place<E>(rows + i * score_row_, from, end);
    }
  }

  // R^T dout, and G^T Q + dS^T ddQ.
  void add_to_keys(int64_t rows, int64_t from, int64_t n) {
    // With one element per word they are the arrays themselves.
    const auto across = [&](const Acc* block, const Word* pairs) {
      const Word* words = E::kPerWord == 2 ? pairs : reinterpret_cast<const Word*>(block);
      return OperandA<E>(words + from, 1, score_row_);
    };
    const int64_t words = words_for<E>(rows);
    if (key_gradients_.wants_dv())
      add_products(started_, n, width_v_, words, across(r_ij_, r_pairs_),
                   block_of(dout_, rows).across(dout_.across, width_v_), dv_to_, from);
    if (!key_gradients_.wants_dk()) return;
    add_products(started_, n, width_, words, across(g_ij_, g_pairs_),
                 block_of(q_, rows).across(q_.across, width_), dk_to_, from);
    if (ddq_.from.data)
      add_products(true, n, width_, words, across(ds_ij_, ds_pairs_),
                   block_of(ddq_, rows).across(ddq_.across, width_), dk_to_, from);
  }

  void add_products(bool started, int64_t rows, int64_t width, int64_t words, OperandA<E> a,
                    OperandB<E> b, const GradientRows<Acc>& to, int64_t from) {
    Acc* c = to.data + from * to.ld;
    if (started) {
      gemm<E, Into::kAdd>(rows, width / V::kLanes, words, a, b, c, to.ld);
    } else {
      gemm<E, Into::kStore>(rows, width / V::kLanes, words, a, b, c, to.ld);
    }
  }

  // share_ = scores x keys + other scores x other keys, 0 for dead queries.
  void product_of_keys(int64_t rows, int64_t from, int64_t n, int64_t width, const Acc* scores,
                       const Keys& keys, const Keys* others, const Acc* other_scores) {
    if (n == 0) return zero_row(share_, rows * width);
    const int64_t words = words_for<E>(n), skipped = from / E::kPerWord;
    const auto along = [&](const Acc* block) {
      return OperandA<E>(reinterpret_cast<const Word*>(block) + skipped, score_row_, 1);
    };
    const auto below = [&](const OperandB<E>& b) {
      return OperandB<E>{b.data + skipped * b.ld, false, b.ld};
    };
    gemm<E, Into::kStore>(rows, width / V::kLanes, words, along(scores), below(keys.across), share_,
                          width);
    if (others)
      gemm<E, Into::kAdd>(rows, width / V::kLanes, words, along(other_scores),
                          below(others->across), share_, width);
    if (!any_dead_) return;
    for (int64_t i = 0; i < rows; ++i)
      if (dead_[i]) zero_row(share_ + i * width, width);
  }

  const AttentionProblem& p_;
  const AttentionDoubleBackward& g_;
  TermKinds kinds_;
  bool plain_, few_queries_ = false;
  RebuiltWeights<V> weights_;
  Dropout<Acc> dropout_;
  Arena arena_;
  KeyGradients<E> key_gradients_;
  QueryGradient<E> dq_to_, ddout_to_;
  int64_t chunk_, block_, width_, width_v_, score_row_;
  bool has_ddk_ = false, has_ddv_ = false, has_ddterms_ = false;

  // The (batch, head) that is being run.
  int64_t partial_ = 0, b_ = 0, h_ = 0;
  Rows queries_{};
  bool one_chunk_ = true, any_dead_ = false, all_seen_ = false;
  bool started_ = false;  // whether dK and dV of the chunk hold earlier blocks' shares
  GradientRows<Acc> dk_to_{}, dv_to_{};
  double dsink_ = 0;

  int32_t* rows_;
  Segment* segments_;
  bool* dead_;
  RowMoments<Acc>* moments_;
  T* zeros_;
  Keys k_, v_, ddk_, ddv_;
  Queries q_, dout_, ddq_;
  Acc *dk_, *dv_, *share_;
  Acc *p_ij_, *ds_ij_, *r_ij_, *g_ij_;
  Word *ds_pairs_ = nullptr, *r_pairs_ = nullptr, *g_pairs_ = nullptr;
  Acc *key_bias_, *row_bias_, *g_row_, *e_row_, *kept_, *dmass_row_, *slope_, *curvature_,
      *product_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
