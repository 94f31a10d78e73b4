// Forward of one (batch, head) that is not short (short_problem.h), for a panel of queries:
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
#include "cpu/kernels/block_operands.h"
#include "cpu/kernels/dropout.h"
#include "cpu/kernels/exp.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/row_total.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/short_problem.h"
#include "cpu/kernels/softmax.h"
#include "cpu/kernels/tiling.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

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

// What fits the second-level cache is there already.
template <class E>
bool pays_to_prefetch(const AttentionProblem& p) {
  const double rows = static_cast<double>(p.batch) * p.num_heads * (p.seqlen_q + p.total_keys);
  return rows * (p.head_dim + p.head_dim_v) * sizeof(typename E::Element) > (4 << 20);
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
        given_(given_scores(p)),
        kinds_(p, given_),
        scale_(given_ ? given_->factor : p.scale),
        dropout_(p),
        arena_(memory),
        panel_rows_(panel_rows),
        panels_(ceil_div(p.seqlen_q, panel_rows)),
        chunk_(min_of(p.total_keys, kForwardBlockN)),
        block_(min_of(panel_rows, kForwardBlockM)),
        words_(words_for<E>(p.head_dim)),
        width_v_(round_up(p.head_dim_v, V::kLanes)),
        score_row_(score_row<E>(chunk_)),
        plain_(scores_are_plain(p, kinds_, scale_)),
        few_queries_(p.seqlen_q <= kFewQueries),
        query_in_place_(rows_are_words_of<E>(p.q, p.q_stride, p.head_dim)),
        prefetches_(pays_to_prefetch<E>(p)) {
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    k_rows_ = arena_.take<const T*>(chunk_);
    v_rows_ = arena_.take<const T*>(chunk_);
    q_rows_ = arena_.take<const T*>(block_);
    k_packed_ = arena_.take<Word>(few_queries_ ? 0 : words_ * round_up(chunk_, V::kLanes));
    v_packed_ = arena_.take<Word>(few_queries_ ? 0 : words_for<E>(chunk_) * width_v_);
    q_packed_ = arena_.take<Word>(query_in_place_ ? 0 : block_ * words_);
    scores_ = arena_.take<Acc>(block_ * score_row_);
    out_ = arena_.take<Acc>(panel_rows * width_v_);
    top_ = arena_.take<Acc>(panel_rows);
    sum_ = arena_.take<Acc>(panel_rows);
    inverse_ = arena_.take<Acc>(panel_rows);
    mass_ = arena_.take<Acc>(panel_rows * p.num_sources);
    finished_ = arena_.take<bool>(ceil_div(panel_rows, kForwardBlockM));
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
    kept_ = arena_.take<Acc>(dropout_.active() ? chunk_ : 0);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Panels [begin, end), counted along (batch, head, panel of queries).
  void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t pair = item / panels_, q_begin = item % panels_ * panel_rows_;
      const int64_t b = pair / p_.num_heads, h = pair % p_.num_heads;
      const int64_t q_end = min_of(p_.seqlen_q, q_begin + panel_rows_);
      const int64_t alive = max_of(q_begin, min_of(q_end, query_rows(p_, b).count));
      last_of_run_ = item + 1 == end;
      if (!p_.cu_seqlens_q) write_absent_rows(b, h, alive, q_end);
      if (alive > q_begin) run_panel(b, h, q_begin, alive);
    }
  }

 private:
  void run_panel(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    const int64_t panel = q_end - q_begin;
    for (int64_t i = 0; i < panel; ++i) {
      top_[i] = minus_infinity<Acc>();
      sum_[i] = 0;
    }
    if (p_.mass)
      for (int64_t i = 0; i < panel * p_.num_sources; ++i) mass_[i] = 0;

    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Band band(p_, b);
    const Blocks chunks(keys.count, kForwardBlockN), blocks(panel, kForwardBlockM);
    // Sums begin with the first chunk, unless a band may leave it out for some block.
    started_ = few_queries_ || keys.count == 0 || !band.open;
    if (started_)
      for (int64_t i = 0; i < panel * width_v_; ++i) out_[i] = 0;
    for (int64_t m = 0; m < blocks.count; ++m) finished_[m] = false;
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c);
      if (reach(band, keys, q_begin, q_end - 1, begin, end).empty()) continue;
      key_rows<T>(p_, keys, b, h, begin, end, k_rows_, v_rows_);
      bias.start_chunk(begin, end);
      if (few_queries_) {
        few_queries_step(b, h, q_begin, q_end, keys, band, begin, end, bias);
        continue;
      }
      const OperandB<E> values = pack_chunk(keys, begin, end);
      for (int64_t m = 0; m < blocks.count; ++m) {
        prefetcher_.clear();
        if (prefetches_ && m == 0) prefetch_values(keys, b, h, {begin, end});
        const int64_t i_begin = q_begin + blocks.begin(m), i_end = q_begin + blocks.end(m);
        if (prefetches_ && c + 1 == chunks.count)
          prefetch_rows(out_row(b, h, i_begin), p_.out_stride[2], i_end - i_begin, p_.head_dim_v);
        const bool last_block = m + 1 == blocks.count, last_chunk = c + 1 == chunks.count;
        const Range next_chunk =
            last_block ? Range{end, min_of(keys.count, chunks.end(c + 1))} : Range{0, 0};
        finished_[m] = step(b, h, i_begin, i_end, q_begin, keys, band, begin, end, values, bias,
                            last_block, next_chunk, last_chunk);
      }
      started_ = true;
    }
    for (int64_t m = 0; m < blocks.count; ++m)
      if (!finished_[m]) finish(b, h, q_begin, blocks.begin(m), blocks.end(m));
  }

  // K^T as panels; V as the micro-kernel reads it, where it stands if it can.
  OperandB<E> pack_chunk(const VisibleKeys& keys, int64_t begin, int64_t end) {
    pack_transposed<E>(k_rows_, end - begin, p_.head_dim, k_packed_);
    if constexpr (E::kPerWord == 1 && sizeof(T) == sizeof(Word)) {
      for (int s = 0; s < p_.num_sources; ++s) {
        const Segment& segment = keys.segments[s];
        if (segment.begin <= begin && end <= segment.end && segment.contiguous &&
            p_.head_dim_v % V::kLanes == 0)
          return {reinterpret_cast<const Word*>(v_rows_[0]), false, p_.sources[s].v_stride[2]};
      }
    }
    pack_across_rows<E>(v_rows_, end - begin, p_.head_dim_v, v_packed_, width_v_);
    return {v_packed_, false, width_v_};
  }

  const T* query_row(int64_t b, int64_t h, int64_t i) const {
    return row_at<const T>(p_.q, p_.q_stride, b, h, query_rows(p_, b).first + i);
  }

  // The rows of a block of queries as the micro-kernel reads them.
  OperandA<E> query_words(int64_t b, int64_t h, int64_t i_begin, int64_t rows) {
    const T* q = query_row(b, h, i_begin);
    if (query_in_place_) return {reinterpret_cast<const Word*>(q), p_.q_stride[2] / E::kPerWord, 1};
    for (int64_t i = 0; i < rows; ++i) q_rows_[i] = q + i * p_.q_stride[2];
    pack_along_row<E>(q_rows_, rows, p_.head_dim, q_packed_, words_);
    return {q_packed_, words_, 1};
  }

  // One block of queries against one chunk of keys; whether its output is finished.
  bool step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end, int64_t q_begin,
            const VisibleKeys& keys, const Band& band, int64_t k_begin, int64_t k_end,
            OperandB<E> values, ChunkBias<Acc>& bias, bool last_block, Range next_chunk,
            bool last_chunk) {
    const Range reached = reach(band, keys, i_begin, i_end - 1, k_begin, k_end);
    if (reached.empty()) return false;
    const int64_t rows = i_end - i_begin;
    if (given_) {
      for (int64_t i = 0; i < rows; ++i)
        copy_scores<V, T>(*given_, b, h, i_begin + i, keys, k_begin, k_end,
                          scores_ + i * score_row_);
    } else {
      gemm<E, Into::kStore>(rows, ceil_div(k_end - k_begin, V::kLanes), words_,
                            query_words(b, h, i_begin, rows), {k_packed_, true, 0}, scores_,
                            score_row_, reached, &prefetcher_);
    }

    // Whole vectors of keys that some query of the block sees.
    const int64_t from = round_down(reached.begin, V::kLanes), to = reached.end;
    softmax_rows(b, h, i_begin, rows, i_begin - q_begin, keys, band, k_begin, k_end,
                 {from, round_up(to, V::kLanes)}, bias);

    prefetcher_.clear();
    if (prefetches_) {
      if (!next_chunk.empty()) {
        prefetch_keys(keys, b, h, next_chunk);
      } else if (!last_block) {
        prefetch_rows(query_row(b, h, i_end), p_.q_stride[2],
                      min_of(rows, query_rows(p_, b).count - i_end), p_.head_dim);
      } else if (!last_of_run_) {
        prefetch_next_head(b, h);
      }
    }
    const OperandA<E> weights = {reinterpret_cast<const Word*>(scores_) + from / E::kPerWord,
                                 score_row_, 1};
    const OperandB<E> rows_of_v = {values.data + from / E::kPerWord * values.ld, false, values.ld};
    const int64_t r = i_begin - q_begin;
    Acc* out = out_ + r * width_v_;
    if (last_chunk) {
      for (int64_t x = r; x < r + rows; ++x) finish_statistics(b, h, q_begin, x);
      gemm_to_rows<E>(rows, words_for<E>(to - from), weights, rows_of_v,
                      {out_row(b, h, i_begin), p_.out_stride[2], p_.head_dim_v, inverse_ + r}, out,
                      width_v_, started_, &prefetcher_);
      zero_blind_rows(b, h, q_begin, r, r + rows);
    } else if (started_) {
      gemm<E, Into::kAdd>(rows, width_v_ / V::kLanes, words_for<E>(to - from), weights, rows_of_v,
                          out, width_v_, {0, INT64_MAX}, &prefetcher_);
    } else {
      gemm<E, Into::kStore>(rows, width_v_ / V::kLanes, words_for<E>(to - from), weights, rows_of_v,
                            out, width_v_, {0, INT64_MAX}, &prefetcher_);
    }
    return last_chunk;
  }

  void few_queries_step(int64_t b, int64_t h, int64_t i_begin, int64_t i_end,
                        const VisibleKeys& keys, const Band& band, int64_t k_begin, int64_t k_end,
                        ChunkBias<Acc>& bias) {
    for (int64_t i = i_begin; i < i_end; ++i) {
      const Range seen = reach(band, keys, i, i, k_begin, k_end);
      if (seen.empty()) continue;
      // From a whole vector on, as the softmax works.
      const int64_t from = round_down(seen.begin, V::kLanes);
      const T* q = query_row(b, h, i);
      Acc* scores = scores_ + (i - i_begin) * score_row_ + from;
      if (given_) {
        copy_scores<V, T>(*given_, b, h, i, keys, k_begin + from, k_begin + seen.end, scores);
      } else if (prefetches_ && i == i_begin) {
        dot_with_rows<V, true>(q, k_rows_ + from, seen.end - from, p_.head_dim, scores,
                               v_rows_ + from);
      } else {
        dot_with_rows<V>(q, k_rows_ + from, seen.end - from, p_.head_dim, scores);
      }
    }
    softmax_rows<false>(b, h, i_begin, i_end - i_begin, 0, keys, band, k_begin, k_end, {0, 0},
                        bias);
    for (int64_t i = i_begin; i < i_end; ++i) {
      const Range seen = reach(band, keys, i, i, k_begin, k_end);
      if (seen.empty()) continue;
      const Acc* weights = scores_ + (i - i_begin) * score_row_ + seen.begin;
      Acc* out = out_ + (i - i_begin) * width_v_;
      const T* const* values = v_rows_ + seen.begin;
      if (given_ && prefetches_ && i == i_begin) {
        add_weighted_rows<V, true>(weights, values, seen.end - seen.begin, p_.head_dim_v, out);
      } else {
        add_weighted_rows<V>(weights, values, seen.end - seen.begin, p_.head_dim_v, out);
      }
    }
  }

  // Turns rows of products into probabilities relative to the running maxima of rows r0 and on of
  // the panel, zero elsewhere within `span`, and rescales what came before.
  template <bool kWords = true>
  void softmax_rows(int64_t b, int64_t h, int64_t i_begin, int64_t rows, int64_t r0,
                    const VisibleKeys& keys, const Band& band, int64_t k_begin, int64_t k_end,
                    Range span, ChunkBias<Acc>& bias) {
    const V hidden = V::set1(minus_infinity<Acc>()), zero = V::zero();
    const Exponential<V> exponential(plain_ ? kLog2E * scale_ : kLog2E);
    const bool needs_floats = dropout_.active() || p_.mass;
    for (int64_t g = 0; g < rows; g += V::kLanes) {
      const int n = static_cast<int>(min_of(V::kLanes, rows - g));
      const int64_t i0 = i_begin + g, r = r0 + g;
      Range seen[V::kLanes];
      V lanes[V::kLanes];
      for (int x = 0; x < n; ++x) {
        Acc* s = scores_ + (g + x) * score_row_;
        seen[x] = reach(band, keys, i0 + x, i0 + x, k_begin, k_end);
        lanes[x] = seen[x].empty() ? hidden
                   : plain_        ? largest_product<V>(s, seen[x])
                                   : products_to_scores<V>(p_, s, seen[x], bias.for_query(i0 + x));
      }
      for (int x = n; x < V::kLanes; ++x) lanes[x] = hidden;
      const V old_top = V::load_first(top_ + r, n);
      const V new_top = max(old_top, max_of_rows(lanes, n));
      // Nothing visible yet: exponents of -inf - 0 give exact zeros, where -inf - (-inf) would give
      // NaN.
      const V shift = select_equal(new_top, hidden, zero, new_top);
      const V correction = exponential(old_top - shift);
      new_top.store_first(top_ + r, n);
      alignas(64) Acc shifts[V::kLanes], corrections[V::kLanes];
      shift.store(shifts);
      correction.store(corrections);

      for (int x = 0; x < n; ++x) {
        Acc* s = scores_ + (g + x) * score_row_;
        const V top = V::set1(shifts[x]);
        if (seen[x].empty()) {
          lanes[x] = zero;
        } else if (kWords && !needs_floats) {
          lanes[x] = exponentiate<E, kWords>(s, seen[x], top, exponential);
        } else {
          lanes[x] = exponentiate<E, false>(s, seen[x], top, exponential);
        }
        if (!needs_floats) zero_words_around(s, span, seen[x]);
      }
      for (int x = n; x < V::kLanes; ++x) lanes[x] = zero;
      const V sum = fmadd(V::load_first(sum_ + r, n), correction, sum_of_rows(lanes, n));
      if (started_) rescale(r, n, corrections);
      sum.store_first(sum_ + r, n);
      if (!needs_floats) continue;
      for (int x = 0; x < n; ++x) {
        Acc* s = scores_ + (g + x) * score_row_;
        weigh_and_drop(b, h, i0 + x, r + x, s, seen[x], keys, k_begin);
        zero_around<V>(s, span.begin, span.end, seen[x]);
        if (kWords) words_in_place<E>(s, span.begin, span.end);
      }
    }
  }

  // What rows [r, r + n) of the panel hold from chunks before, relative to their new maxima.
  void rescale(int64_t r, int n, const Acc* corrections) {
    for (int x = 0; x < n; ++x) {
      const Acc correction = corrections[x];
      if (correction == 1 || sum_[r + x] == 0) continue;
      scale_row<V>(out_ + (r + x) * width_v_, width_v_, correction);
      if (p_.mass)
        for (int s = 0; s < p_.num_sources; ++s) mass_[(r + x) * p_.num_sources + s] *= correction;
    }
  }

  // A row of probabilities: its share of mass, then dropout.
  void weigh_and_drop(int64_t b, int64_t h, int64_t i, int64_t r, Acc* s, Range seen,
                      const VisibleKeys& keys, int64_t k_begin) {
    if (seen.empty()) return;
    if (p_.mass) {
      for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                       [&](int source, int64_t from, int64_t to, bool) {
                         mass_[r * p_.num_sources + source] +=
                             sum_row<V>(s + from - k_begin, to - from);
                       });
    }
    if (dropout_.active()) {
      dropout_.draw(b, h, i, keys, k_begin, seen, kept_);
      drop<V>(s, seen, kept_);
    }
  }

  // Zero words on the whole vectors of `span` that hold no key of `seen`.
  static void zero_words_around(Acc* s, Range span, Range seen) {
    if constexpr (E::kPerWord == 2) {
      BFloat16* words = reinterpret_cast<BFloat16*>(s);
      const int64_t left = seen.empty() ? span.end : round_down(seen.begin, V::kLanes);
      for (int64_t x = span.begin; x < left; x += V::kLanes) V::zero().store(words + x);
      if (seen.empty()) return;
      for (int64_t x = round_up(seen.end, V::kLanes); x < span.end; x += V::kLanes)
        V::zero().store(words + x);
    } else {
      zero_around<V>(s, span.begin, span.end, seen);
    }
  }

  // Rows [begin, end) of the panel, whose sums are in out_.
  void finish(int64_t b, int64_t h, int64_t q_begin, int64_t begin, int64_t end) {
    T* out = out_row(b, h, q_begin);
    for (int64_t r = begin; r < end; ++r) {
      finish_statistics(b, h, q_begin, r);
      store_scaled_row<V>(out_ + r * width_v_, p_.head_dim_v, inverse_[r],
                          out + r * p_.out_stride[2]);
    }
    zero_blind_rows(b, h, q_begin, begin, end);
  }

  // What the sums of row r of the panel are to be multiplied with; lse, statistics and mass leave.
  void finish_statistics(int64_t b, int64_t h, int64_t q_begin, int64_t r) {
    const int64_t row = row_index(p_, b, h, q_begin) + r;
    const RowTotal total = plain_ ? plain_total<V>(p_, scale_, top_[r], sum_[r])
                                  : with_sink<V>(p_, b, h, top_[r], sum_[r]);
    inverse_[r] = total.inverse;
    write_statistics(row, total);
    if (p_.mass) {
      Acc* mass = static_cast<Acc*>(p_.mass) + row * p_.num_sources;
      for (int s = 0; s < p_.num_sources; ++s)
        mass[s] = sees_nothing(r) ? Acc(0) : mass_[r * p_.num_sources + s] * total.inverse;
    }
  }

  // False for a sum of NaN, which has to be seen.
  bool sees_nothing(int64_t r) const { return sum_[r] == 0; }

  // 0 times a value row is not enough: that may have been NaN.
  void zero_blind_rows(int64_t b, int64_t h, int64_t q_begin, int64_t begin, int64_t end) {
    T* out = out_row(b, h, q_begin);
    for (int64_t r = begin; r < end; ++r)
      if (sees_nothing(r)) zero_row(out + r * p_.out_stride[2], p_.head_dim_v);
  }

  // Queries at or beyond the sample's length: they see nothing, not even a sink.
  void write_absent_rows(int64_t b, int64_t h, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      zero_row(out_row(b, h, i), p_.head_dim_v);
      const int64_t row = row_index(p_, b, h, i);
      write_statistics(row, RowTotal::none());
      if (p_.mass) zero_row(static_cast<Acc*>(p_.mass) + row * p_.num_sources, p_.num_sources);
    }
  }

  void prefetch_rows(const T* row, int64_t stride, int64_t rows, int64_t width) {
    prefetcher_.add_rows(row, stride * int64_t{sizeof(T)}, rows, width * int64_t{sizeof(T)});
  }

  // Values of the list in `range`, from the first to the last row of each source.
  void prefetch_values(const VisibleKeys& keys, int64_t b, int64_t h, Range range) {
    for_each_stretch(p_, keys, range.begin, range.end, [&](int s, int64_t from, int64_t to, bool) {
      const KeySource& source = p_.sources[s];
      const int64_t first = key_rows_of(source, b).first + keys.rows[from];
      prefetch_rows(row_at<const T>(source.v, source.v_stride, b, key_head(p_, source, h), first),
                    source.v_stride[2], keys.rows[to - 1] - keys.rows[from] + 1, p_.head_dim_v);
    });
  }

  // Keys of the list in `range`, from the first to the last row of each source.
  void prefetch_keys(const VisibleKeys& keys, int64_t b, int64_t h, Range range) {
    for_each_stretch(p_, keys, range.begin, range.end, [&](int s, int64_t from, int64_t to, bool) {
      const KeySource& source = p_.sources[s];
      const int64_t first = key_rows_of(source, b).first + keys.rows[from];
      prefetch_rows(row_at<const T>(source.k, source.k_stride, b, key_head(p_, source, h), first),
                    source.k_stride[2], keys.rows[to - 1] - keys.rows[from] + 1, p_.head_dim);
    });
  }

  // Keys and queries of the head that comes next in this run.
  void prefetch_next_head(int64_t b, int64_t h) {
    const bool next_sample = h + 1 == p_.num_heads;
    const int64_t nb = next_sample ? b + 1 : b, nh = next_sample ? 0 : h + 1;
    if (nb >= p_.batch) return;
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      const Rows keys = key_rows_of(source, nb);
      prefetch_rows(
          row_at<const T>(source.k, source.k_stride, nb, key_head(p_, source, nh), keys.first),
          source.k_stride[2], min_of(keys.count, kForwardBlockN), p_.head_dim);
    }
    const Rows queries = query_rows(p_, nb);
    prefetch_rows(row_at<const T>(p_.q, p_.q_stride, nb, nh, queries.first), p_.q_stride[2],
                  min_of(queries.count, kForwardBlockM), p_.head_dim);
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
  const ScoreTerm* given_;
  TermKinds kinds_;
  double scale_;  // of products
  Dropout<Acc> dropout_;
  Arena arena_;
  Prefetcher prefetcher_;
  int64_t panel_rows_, panels_, chunk_, block_, words_, width_v_, score_row_;
  bool plain_, few_queries_, query_in_place_, prefetches_;
  bool started_ = false;      // whether out_ holds sums of earlier chunks
  bool last_of_run_ = false;  // whether no panel follows in this run
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_, **q_rows_;
  bool* finished_;  // [blocks of the panel]
  Word *k_packed_, *v_packed_, *q_packed_;
  Acc *scores_, *out_, *top_, *sum_, *inverse_, *mass_, *key_bias_, *row_bias_, *kept_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
