// Backward of one (batch, head). P is recomputed from the maximum and the sum of each row, so that
// nothing of size L_q x L_k is kept:
//
//   for each chunk of visible keys:  pack K^T, V^T, K
//     for each block of queries:
//       P  = exp(S - top) / sum,  dP = dropped(dout V^T) or what reached the weights themselves
//       dS = P * (dP + dmass - delta),  delta = sum_j P dP + rowsum(dmass * mass) - dlse
//       dV += dropped(P)^T dout;  bias gradients += dS;  dsink -= P_sink delta
//       dS *= the slope of softcap;  dK += scale * dS^T Q;  dQ += scale * dS K
//
// (FlashAttention, Dao et al., 2022, algorithm 4; the terms of mass, lse, sink and softcap follow
// from the same softmax Jacobian.)
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kernels/attention_fwd.h"
#include "cpu/kernels/backward_prefetch.h"
#include "cpu/kernels/key_gradients.h"
#include "cpu/kernels/plain_gradient.h"
#include "cpu/kernels/query_gradient.h"
#include "cpu/kernels/rebuilt_weights.h"
#include "cpu/kernels/weight_gradient.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class AttentionBackwardTask {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

 public:
  AttentionBackwardTask(const AttentionProblem& p, const AttentionBackward& g, char* memory)
      : p_(p),
        g_(g),
        given_(given_scores(p)),
        kinds_(p, given_),
        scale_(given_ ? given_->factor : p.scale),
        dropout_(p),
        weight_gradient_(p, g.associate),
        arena_(memory),
        key_gradients_(p, &arena_),
        dq_to_(p, g.dq, g.dq_stride, p.head_dim, p.total_keys > kBackwardBlockN, &arena_),
        chunk_(min_of(p.total_keys, kBackwardBlockN)),
        block_(round_up(max_of(1, min_of(p.seqlen_q, kBackwardBlockM<E>)), E::kPerWord)),
        words_(words_for<E>(p.head_dim)),
        words_v_(words_for<E>(p.head_dim_v)),
        width_(round_up(p.head_dim, V::kLanes)),
        width_v_(round_up(p.head_dim_v, V::kLanes)),
        score_row_(score_row<E>(chunk_)),
        plain_(scores_are_plain(p, kinds_, scale_)),
        weights_(p, plain_, scale_),
        prefetches_(pays_to_prefetch<E>(p)) {
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
    delta_ = arena_.take<Acc>(p.seqlen_q);
    weighted_ = arena_.take<Acc>(g.dsink ? p.seqlen_q : 0);
    dscore_ = arena_.take<Acc>(chunk_lanes);
    dmass_row_ = arena_.take<Acc>(chunk_lanes);
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
    kept_ = arena_.take<Acc>(dropout_.active() ? chunk_lanes : 0);
    slope_ = arena_.take<Acc>(p.softcap > 0 ? chunk_lanes : 0);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Pairs (batch, head) [begin, end); bias gradients go to accumulator `partial`.
  void run(int64_t partial, int64_t begin, int64_t end) {
    partial_ = partial;
    for (int64_t pair = begin; pair < end; ++pair) {
      last_of_run_ = pair + 1 == end;
      run_head(pair / p_.num_heads, pair % p_.num_heads);
    }
  }

 private:
  void run_head(int64_t b, int64_t h) {
    b_ = b;
    h_ = h;
    dsink_ = 0;
    queries_ = query_rows(p_, b);
    // Forward packed the keys of `associate` for few queries too, and both must form the same
    // products.
    few_queries_ = has_few_queries(p_, plain_, b) && !g_.associate;
    dq_to_.start(b, h);
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    key_gradients_.start(keys, b, h);
    if (given_ && given_->dscores && keys.count < p_.total_keys)
      zero_row(given_gradient(), p_.seqlen_q * p_.total_keys);
    const Blocks chunks(keys.count, kBackwardBlockN);
    one_chunk_ = chunks.count <= 1;
    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Band band(p_, b);
    start_delta();
    if (!one_chunk_ && g_.associate) each_chunk(keys, chunks, band, bias, Pass::kDelta);
    if (g_.dsink)
      for (int64_t i = 0; i < queries_.count; ++i) weighted_[i] = 0;
    if (keys.count == 0) {
      if (g_.dq) dq_to_.zero(0, queries_.count);
    } else {
      each_chunk(keys, chunks, band, bias, Pass::kGradients);
    }
    key_gradients_.finish(b, h);
    if (!g_.dsink) return;
    for (int64_t i = 0; i < queries_.count; ++i)
      if (!is_dead(i)) add_sink_gradient(i);
    g_.dsink[b * p_.num_heads + h] = dsink_;
  }

  // Over several chunks delta has to be known before the first gradient. Attention has it from out,
  // a summary of the weights has not.
  enum class Pass { kDelta, kGradients };

  void each_chunk(const VisibleKeys& keys, const Blocks& chunks, const Band& band,
                  ChunkBias<Acc>& bias, Pass pass) {
    const Blocks blocks(queries_.count, block_);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c), n = end - begin;
      key_rows<T>(p_, keys, b_, h_, begin, end, k_rows_, v_rows_);
      if (!few_queries_) {
        pack_transposed<E>(k_rows_, n, p_.head_dim, k_transposed_);
        if (!g_.associate) pack_transposed<E>(v_rows_, n, p_.head_dim_v, v_transposed_);
      }
      bias.start_chunk(begin, end);
      if (pass == Pass::kDelta) {
        for (int64_t m = 0; m < blocks.count; ++m)
          delta_step(blocks.begin(m), blocks.end(m), keys, band, begin, end, bias);
        continue;
      }
      // Every query sees every key of the list: what is hidden is not in it.
      all_seen_ = plain_ && band.open;
      k_operand_ = keys_across(keys, begin, end);
      dk_to_ = key_gradients_.dk_in_place(keys, b_, h_, begin, end, {dk_, width_});
      dv_to_ = key_gradients_.dv_in_place(keys, b_, h_, begin, end, {dv_, width_v_});
      // A band may leave keys out of the last block.
      dk_rows_ = dv_rows_ = {nullptr, 0, 0};
      if (band.open && dk_to_.data == dk_)
        dk_rows_ = key_gradients_.dk_rows(keys, b_, h_, begin, end);
      if (band.open && dv_to_.data == dv_)
        dv_rows_ = key_gradients_.dv_rows(keys, b_, h_, begin, end);
      // The first block stores, the others add; unless a band may leave keys out of the first.
      started_ = !band.open || blocks.count == 0;
      if (started_) {
        dk_to_.zero(n, width_);
        dv_to_.zero(n, width_v_);
      }
      for (int64_t m = 0; m < blocks.count; ++m) {
        const int64_t i_begin = blocks.begin(m), i_end = blocks.end(m);
        const Range reached = reach(band, keys, i_begin, i_end - 1, begin, end);
        prefetcher_.clear();
        if (prefetches_)
          BackwardPrefetch<T>(p_, g_, block_, &prefetcher_)
              .after(b_, h_, keys, i_end, {end, chunks.end(c + 1)}, last_of_run_);
        last_block_ = m + 1 == blocks.count;
        if (reached.empty()) {
          for (int64_t x = 0; x < (i_end - i_begin) * width_; ++x) dq_[x] = 0;
        } else {
          step(i_begin, i_end, keys, band, reached, begin, end, bias);
        }
        if (g_.dq && (!one_chunk_ || reached.empty()))
          dq_to_.add(i_begin, i_end, dq_, width_, c == 0, c + 1 == chunks.count);
        started_ = true;
      }
      // Unless blocks wrote them where they belong.
      const bool adds_dk = dk_to_.data == dk_ && (!dk_rows_.rows || blocks.count == 0);
      const bool adds_dv = dv_to_.data == dv_ && (!dv_rows_.rows || blocks.count == 0);
      key_gradients_.add(keys, b_, h_, begin, end, adds_dk ? dk_ : nullptr, width_,
                         adds_dv ? dv_ : nullptr, width_v_);
    }
  }

  // K for dQ = dS K, where it stands if it can. Where dS is 0 because the key is hidden from this
  // query, a NaN in K must not make it NaN; queries that see the key have NaN in dS already.
  OperandB<E> keys_across(const VisibleKeys& keys, int64_t begin, int64_t end) {
    if (all_seen_ && rows_are_vectors_of<E>(p_.head_dim)) {
      for (int s = 0; s < p_.num_sources; ++s) {
        const Segment& segment = keys.segments[s];
        if (segment.begin <= begin && end <= segment.end && segment.contiguous)
          return {reinterpret_cast<const Word*>(k_rows_[0]), false, p_.sources[s].k_stride[2]};
      }
    }
    pack_across_rows<E, NonFinite::kZero>(k_rows_, end - begin, p_.head_dim, k_across_, width_);
    return {k_across_, false, width_};
  }

  // Rows of the block that take_rows found.
  QueryRows<E> block_of_q(int64_t rows) const {
    return {q_rows_, rows, any_dead_, p_.q, p_.q_stride, p_.head_dim};
  }
  QueryRows<E> block_of_dout(int64_t rows) const {
    return {dout_rows_, rows, any_dead_, g_.dout, g_.dout_stride, p_.head_dim_v};
  }

  int64_t row_of(int64_t i) const { return row_index(p_, b_, h_, i); }
  // A query that sees nothing takes no part: its rows and its dout may hold anything.
  bool is_dead(int64_t i) const { return static_cast<const Acc*>(p_.row_sum)[row_of(i)] == 0; }
  const T* q_row(int64_t i) const {
    return row_at<const T>(p_.q, p_.q_stride, b_, h_, queries_.first + i);
  }
  const T* dout_row(int64_t i) const {
    return row_at<const T>(g_.dout, g_.dout_stride, b_, h_, queries_.first + i);
  }

  // The part of delta that is known before the weights are: -dlse, and over several chunks of keys
  // also rowsum(dout * out) + rowsum(dmass * mass). Within one chunk the sum over the weights
  // themselves takes its place: out was rounded, and gradients of biases are small differences.
  void start_delta() {
    for (int64_t i = 0; i < queries_.count; ++i) {
      delta_[i] = 0;
      const int64_t row = row_of(i);
      const Acc dlse = g_.dlse ? static_cast<const Acc*>(g_.dlse)[row] : Acc(0);
      if (is_dead(i)) {
        // Where only the sink is left, it is lse.
        if (static_cast<const Acc*>(p_.row_top)[row] != minus_infinity<Acc>()) dsink_ += dlse;
        continue;
      }
      delta_[i] = -dlse;
      if (one_chunk_ || g_.associate) continue;
      const T* out = row_at<const T>(p_.out, p_.out_stride, b_, h_, queries_.first + i);
      delta_[i] += dot_rows<V>(dout_row(i), out, p_.head_dim_v);
      if (g_.dmass)
        for (int64_t x = row * p_.num_sources; x < (row + 1) * p_.num_sources; ++x)
          delta_[i] += static_cast<const Acc*>(g_.dmass)[x] * static_cast<const Acc*>(p_.mass)[x];
    }
  }

  // The sink is a key of value 0: dS_sink = P_sink * (0 - delta), of which the sum over weights was
  // formed on the way: delta_ may hold that of a rounded output.
  void add_sink_gradient(int64_t i) {
    const int64_t row = row_of(i);
    const Acc delta = weighted_[i] - (g_.dlse ? static_cast<const Acc*>(g_.dlse)[row] : Acc(0));
    const Acc sink = sink_of<Acc>(p_, b_, h_);
    if (sink == minus_infinity<Acc>()) return;
    const Acc share = exp_scalar<V>(sink - static_cast<const Acc*>(p_.row_top)[row]) /
                      static_cast<const Acc*>(p_.row_sum)[row];
    dsink_ -= static_cast<double>(share) * delta;
  }

  void take_rows(int64_t i_begin, int64_t rows) {
    any_dead_ = false;
    for (int64_t i = 0; i < rows; ++i) {
      dead_[i] = is_dead(i_begin + i);
      any_dead_ |= dead_[i];
      q_rows_[i] = dead_[i] ? nullptr : q_row(i_begin + i);
      dout_rows_[i] = dead_[i] || g_.associate ? nullptr : dout_row(i_begin + i);
    }
  }

  // One block of queries against one chunk of keys; leaves the block's share of dQ in dq_.
  void step(int64_t i_begin, int64_t i_end, const VisibleKeys& keys, const Band& band,
            Range reached, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t rows = i_end - i_begin;
    take_rows(i_begin, rows);
    if (given_)
      for (int64_t i = 0; i < rows; ++i)
        copy_scores<V, T>(*given_, b_, h_, i_begin + i, keys, k_begin, k_end,
                          p_ij_ + i * score_row_);
    products(rows, k_end - k_begin, reached);
    // Whole vectors of keys that some query of the block sees.
    const int64_t from = round_down(reached.begin, V::kLanes), to = reached.end, n = to - from;
    if (all_seen_ && !any_dead_ && is_simple()) {
      plain_gradient(i_begin, rows, n).run();
    } else {
      gradients_of_rows(i_begin, rows, keys, band, {from, to}, k_begin, k_end, bias);
    }

    if (given_ && given_->dscores) write_given_gradient(i_begin, rows, keys, k_begin, n);

    // With one element per word they are the arrays themselves.
    const Word* p_across = E::kPerWord == 2 ? p_pairs_ : reinterpret_cast<const Word*>(p_ij_);
    const Word* ds_across = E::kPerWord == 2 ? ds_pairs_ : reinterpret_cast<const Word*>(ds_ij_);
    const Word* ds_along = reinterpret_cast<const Word*>(ds_ij_);
    const int64_t row_words = words_for<E>(rows);
    if (key_gradients_.wants_dv()) {
      add_products(n, width_v_ / V::kLanes, row_words, {p_across + from, 1, score_row_},
                   block_of_dout(rows).across(dout_across_, width_v_),
                   dv_to_.data + from * dv_to_.ld, dv_to_.ld, dv_rows_);
    }
    if (key_gradients_.wants_dk()) {
      add_products(n, width_ / V::kLanes, row_words, {ds_across + from, 1, score_row_},
                   block_of_q(rows).across(q_across_, width_), dk_to_.data + from * dk_to_.ld,
                   dk_to_.ld, dk_rows_);
    }
    if (g_.dq) {
      const OperandA<E> a = {ds_along + from / E::kPerWord, score_row_, 1};
      const OperandB<E> b = {k_operand_.data + from / E::kPerWord * k_operand_.ld, false,
                             k_operand_.ld};
      if (one_chunk_) {
        gemm_to_rows<E>(rows, words_for<E>(n), a, b, dq_to_.rows_from(i_begin), dq_, width_, false,
                        &prefetcher_);
      } else {
        gemm<E, Into::kStore>(rows, width_ / V::kLanes, words_for<E>(n), a, b, dq_, width_,
                              {0, INT64_MAX}, &prefetcher_);
      }
    }
  }

  // Whether dS is P (dP - delta) and nothing else.
  bool is_simple() const {
    return !dropout_.active() && !g_.dmass && !g_.associate && !kinds_.gradients && !g_.dsink;
  }

  PlainGradient<E> plain_gradient(int64_t i_begin, int64_t rows, int64_t n) {
    const int64_t row = row_of(i_begin);
    return {p_ij_,
            ds_ij_,
            score_row_,
            rows,
            n,
            static_cast<const Acc*>(p_.row_top) + row,
            static_cast<const Acc*>(p_.row_sum) + row,
            delta_ + i_begin,
            one_chunk_,
            Exponential<V>(kLog2E * scale_),
            static_cast<Acc>(scale_),
            p_pairs_,
            ds_pairs_};
  }

  // P and dS of a block of queries, in words, for the keys of `span`.
  void gradients_of_rows(int64_t i_begin, int64_t rows, const VisibleKeys& keys, const Band& band,
                         Range span, int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t end = round_up(span.end, V::kLanes);
    for (int64_t i = 0; i < rows; ++i) {
      Acc *s = p_ij_ + i * score_row_, *ds = ds_ij_ + i * score_row_;
      Range seen = reach(band, keys, i_begin + i, i_begin + i, k_begin, k_end);
      if (dead_[i]) seen = {0, 0};
      if (!seen.empty()) softmax_gradient(i_begin + i, s, ds, seen, keys, k_begin, bias);
      zero_around<V>(s, span.begin, end, seen);
      zero_around<V>(ds, span.begin, end, seen);
      if (E::kPerWord == 2 && (i % 2 == 1 || i + 1 == rows))
        words_of_pair(i / 2, i % 2 == 1, span.begin, end);
    }
  }

  // dS of a block, which is the gradient of scores that were given.
  void write_given_gradient(int64_t i_begin, int64_t rows, const VisibleKeys& keys, int64_t k_begin,
                            int64_t n) {
    // In words of two elements it is of the element type by now.
    using S = std::conditional_t<E::kPerWord == 2, T, Acc>;
    for (int64_t i = 0; i < rows; ++i)
      write_dscores<V>(reinterpret_cast<const S*>(ds_ij_ + i * score_row_), keys, k_begin, n,
                       given_gradient() + (i_begin + i) * p_.total_keys);
  }
  T* given_gradient() const {
    return static_cast<T*>(given_->dscores) +
           (b_ * p_.num_heads + h_) * p_.seqlen_q * p_.total_keys;
  }

  // C (+)= A B, or of the last block the finished rows, where there are any.
  void add_products(int64_t rows, int64_t vectors, int64_t words, OperandA<E> a, OperandB<E> b,
                    Acc* c, int64_t c_row, ToRows<E> finished) {
    if (last_block_ && finished.rows) {
      gemm_to_rows<E>(rows, words, a, b, finished, c, c_row, started_, &prefetcher_);
    } else if (started_) {
      gemm<E, Into::kAdd>(rows, vectors, words, a, b, c, c_row, {0, INT64_MAX}, &prefetcher_);
    } else {
      gemm<E, Into::kStore>(rows, vectors, words, a, b, c, c_row, {0, INT64_MAX}, &prefetcher_);
    }
  }

  // The chunk's share of delta, for a gradient that flows in through the weights.
  void delta_step(int64_t i_begin, int64_t i_end, const VisibleKeys& keys, const Band& band,
                  int64_t k_begin, int64_t k_end, ChunkBias<Acc>& bias) {
    const int64_t rows = i_end - i_begin;
    take_rows(i_begin, rows);
    products(rows, k_end - k_begin, {0, k_end - k_begin});
    for (int64_t i = 0; i < rows; ++i) {
      if (dead_[i]) continue;
      Acc *s = p_ij_ + i * score_row_, *ds = ds_ij_ + i * score_row_;
      const Range seen = reach(band, keys, i_begin + i, i_begin + i, k_begin, k_end);
      weights_.run(i_begin + i, row_of(i_begin + i), s, seen, bias, slope_);
      weight_gradient_.fill(b_, h_, i_begin + i, keys, k_begin, seen, s, ds);
      delta_[i_begin + i] += weighted_gradient_sum<V>(s, ds, nullptr, seen);
    }
  }

  // S = Q K^T into p_ij_, dP = dout V^T into ds_ij_, at least for the keys reached. Rows of dead
  // queries may hold anything finite.
  void products(int64_t rows, int64_t n, Range reached) {
    if (few_queries_) {
      for (int64_t i = 0; i < rows; ++i) {
        if (dead_[i]) continue;
        if (!given_) dot_with_rows<V>(q_rows_[i], k_rows_, n, p_.head_dim, p_ij_ + i * score_row_);
        dot_with_rows<V>(dout_rows_[i], v_rows_, n, p_.head_dim_v, ds_ij_ + i * score_row_);
      }
      return;
    }
    const int64_t vectors = ceil_div(n, V::kLanes);
    if (!given_)
      gemm<E, Into::kStore>(rows, vectors, words_, block_of_q(rows).along(q_along_, words_),
                            {k_transposed_, true, 0}, p_ij_, score_row_, reached, &prefetcher_);
    if (g_.associate) return;
    gemm<E, Into::kStore>(rows, vectors, words_v_, block_of_dout(rows).along(dout_along_, words_v_),
                          {v_transposed_, true, 0}, ds_ij_, score_row_, reached, &prefetcher_);
  }

  // s: products -> P, dropped; ds: dP -> what Q and K are multiplied with. Both 0 on the lanes of
  // their vectors that hold no key seen.
  void softmax_gradient(int64_t i, Acc* s, Acc* ds, Range seen, const VisibleKeys& keys,
                        int64_t k_begin, ChunkBias<Acc>& bias) {
    weights_.run(i, row_of(i), s, seen, bias, slope_);
    if (g_.associate) weight_gradient_.fill(b_, h_, i, keys, k_begin, seen, s, ds);
    if (dropout_.active()) {
      dropout_.draw(b_, h_, i, keys, k_begin, seen, kept_);
      drop<V>(ds, seen, kept_);
    }
    const Acc* dmass = g_.dmass ? dmass_of_keys(i, seen, keys, k_begin) : nullptr;
    Acc delta_i = delta_[i];
    if (one_chunk_ || g_.dsink) {
      const Acc weighted = weighted_gradient_sum<V>(s, ds, dmass, seen);
      if (one_chunk_) delta_i += weighted;
      if (g_.dsink) weighted_[i] += weighted;
    }

    const V zero = V::zero(), delta = V::set1(delta_i), scale = V::set1(static_cast<Acc>(scale_));
    for (int64_t x = round_down(seen.begin, V::kLanes); x < seen.end; x += V::kLanes) {
      const V weight = V::load(s + x);
      V gradient = V::load(ds + x) - delta;
      if (dmass) gradient = gradient + V::load(dmass + x);
      // By choice, not by 0 * gradient: behind a mask the gradient may be NaN.
      gradient = select_equal(weight, zero, zero, weight * gradient);
      if (kinds_.gradients) gradient.store(dscore_ + x);
      // The slope of a hidden key may be NaN, too.
      if (p_.softcap > 0)
        gradient = select_equal(weight, zero, zero, gradient * V::load(slope_ + x));
      (gradient * scale).store(ds + x);
    }
    if (kinds_.gradients) add_term_gradients(i, keys, k_begin, seen);
    if (dropout_.active()) drop<V>(s, seen, kept_);
  }

  // [keys of the chunk] what flows back to the mass of each key's source.
  const Acc* dmass_of_keys(int64_t i, Range seen, const VisibleKeys& keys, int64_t k_begin) {
    const Acc* per_source = static_cast<const Acc*>(g_.dmass) + row_of(i) * p_.num_sources;
    spread_over_keys<V>(p_, keys, k_begin, seen, per_source, dmass_row_);
    return dmass_row_;
  }

  void add_term_gradients(int64_t i, const VisibleKeys& keys, int64_t k_begin, Range seen) {
    for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       const KeySource& source = p_.sources[s];
                       for (int t = 0; t < source.num_terms; ++t)
                         if (source.terms[t].grad)
                           add_term_gradient<V>(source.terms[t], partial_, b_, h_, i,
                                                keys.rows + from, to - from, contiguous,
                                                dscore_ + (from - k_begin));
                     });
  }

  // The words in which two rows of P and dS enter the products, for the keys [from, end): P and dS
  // across queries, dS along keys, in its place.
  void words_of_pair(int64_t pair, bool two, int64_t from, int64_t end) {
    if constexpr (E::kPerWord == 2) {
      const Acc *p = p_ij_ + 2 * pair * score_row_, *ds = ds_ij_ + 2 * pair * score_row_;
      for (int64_t x = from; x < end; x += V::kLanes) {
        store_pairs(V::load(p + x), two ? V::load(p + score_row_ + x) : V::zero(),
                    p_pairs_ + pair * score_row_ + x);
        store_pairs(V::load(ds + x), two ? V::load(ds + score_row_ + x) : V::zero(),
                    ds_pairs_ + pair * score_row_ + x);
      }
      for (int64_t i = 2 * pair; i < 2 * pair + 1 + two; ++i)
        words_in_place<E>(ds_ij_ + i * score_row_, from, end);
    }
  }

  const AttentionProblem& p_;
  const AttentionBackward& g_;
  const ScoreTerm* given_;
  TermKinds kinds_;
  double scale_;
  Dropout<Acc> dropout_;
  WeightGradient<V> weight_gradient_;
  Arena arena_;
  KeyGradients<E> key_gradients_;
  QueryGradient<E> dq_to_;
  int64_t chunk_, block_, words_, words_v_, width_, width_v_, score_row_;
  bool plain_;
  RebuiltWeights<V> weights_;
  bool prefetches_;
  Prefetcher prefetcher_;

  // The (batch, head) that is being run.
  int64_t partial_ = 0, b_ = 0, h_ = 0;
  Rows queries_{};
  bool few_queries_ = false, one_chunk_ = true, last_of_run_ = true, last_block_ = true,
       any_dead_ = false, all_seen_ = false;
  bool started_ = false;  // whether dK and dV of the chunk hold earlier blocks' shares
  OperandB<E> k_operand_{};
  GradientRows<Acc> dk_to_{}, dv_to_{};
  ToRows<E> dk_rows_{}, dv_rows_{};  // where the last block of queries finishes them, or no rows
  double dsink_ = 0;

  int32_t* rows_;
  Segment* segments_;
  bool* dead_;
  const T **k_rows_, **v_rows_, **q_rows_, **dout_rows_;
  Word *k_transposed_, *v_transposed_, *k_across_, *q_along_, *q_across_, *dout_along_,
      *dout_across_;
  Word *p_pairs_ = nullptr, *ds_pairs_ = nullptr;
  Acc *dk_, *dv_, *p_ij_, *ds_ij_, *dq_, *delta_, *weighted_, *dscore_, *dmass_row_, *key_bias_,
      *row_bias_, *kept_, *slope_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
