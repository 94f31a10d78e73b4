// The weighted sum with given weights, forward and backward. Which keys take part is decided by the
// code that decides it for attention: a skipped key is not in the list, a key skipped for some
// queries only has weight 0 there.
#pragma once

#include <cstdint>

#include "core/weighted_sum_problem.h"
#include "cpu/kernels/arena.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/tiling.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// The same problem as attention sees it: one source whose keys are its values, with the mask as a
// bool term.
struct AsAttention {
  KeySource source;
  AttentionProblem problem;

  explicit AsAttention(const WeightedSumProblem& w) : source(), problem() {
    source.k = source.v = w.values;
    for (int d = 0; d < 3; ++d) source.k_stride[d] = source.v_stride[d] = w.values_stride[d];
    source.num_heads_k = w.num_heads;
    source.seqlen_k = w.seqlen_k;
    source.lengths = w.lengths;
    source.lengths_are_int64 = w.lengths_are_int64;
    if (w.mask) {
      source.num_terms = 1;
      source.terms[0].data = w.mask;
      source.terms[0].type = TermType::kBool;
      source.terms[0].factor = 1;
      for (int d = 0; d < 4; ++d) source.terms[0].stride[d] = w.mask_stride[d];
    }
    problem.sources = &source;
    problem.num_sources = 1;
    problem.batch = w.batch;
    problem.num_heads = w.num_heads;
    problem.seqlen_q = w.seqlen_q;
    problem.total_keys = w.seqlen_k;
    problem.window_left = problem.window_right = -1;
    problem.skips_unseen_keys = true;
  }
  AsAttention(const AsAttention&) = delete;
};

// What forward and backward share: the visible keys of (b, h) and the weights of a block of
// queries.
template <class E>
class WeightedSumBase {
 protected:
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

  WeightedSumBase(const WeightedSumProblem& w, char* memory)
      : w_(w),
        as_(w),
        kinds_(as_.problem),
        arena_(memory),
        chunk_(min_of(w.seqlen_k, kBackwardBlockN)),
        width_(round_up(w.head_dim, V::kLanes)),
        score_row_(score_row<E>(chunk_)) {
    rows_ = arena_.take<int32_t>(w.seqlen_k);
    segment_ = arena_.take<Segment>(1);
    k_rows_ = arena_.take<const T*>(chunk_);
    v_rows_ = arena_.take<const T*>(chunk_);
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
    weights_ = arena_.take<Acc>(kForwardBlockM * score_row_);
  }

  VisibleKeys visible(int64_t b, int64_t h) {
    return find_visible_keys(as_.problem, b, h, rows_, segment_);
  }

  // row[x] = weight of query i for keys [begin, end) of the list, 0 where the mask skips it and up
  // to a whole vector.
  void gather_weights(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, int64_t begin,
                      int64_t end, const Acc* bias, Acc* row) {
    const int64_t* stride = w_.weights_stride;
    const T* weights =
        static_cast<const T*>(w_.weights) + b * stride[0] + h * stride[1] + i * stride[2];
    const int64_t n = end - begin;
    if (stride[3] == 1 && keys.segments[0].contiguous) {
      weights += keys.rows[begin];
      for (int64_t x = 0; x < n; x += V::kLanes) {
        const int rest = static_cast<int>(min_of(V::kLanes, n - x));
        (rest == V::kLanes ? V::load(weights + x) : V::load_first(weights + x, rest))
            .store(row + x);
      }
    } else {
      for (int64_t x = 0; x < n; ++x) row[x] = load_one(weights + keys.rows[begin + x] * stride[3]);
      for (int64_t x = n; x < round_up(n, V::kLanes); ++x) row[x] = 0;
    }
    if (bias)
      for (int64_t x = 0; x < n; ++x) row[x] = bias[x] == 0 ? row[x] : Acc(0);
  }

  static Acc load_one(const T* p) { return static_cast<Acc>(term_value(p)); }

  const WeightedSumProblem& w_;
  AsAttention as_;
  TermKinds kinds_;
  Arena arena_;
  int64_t chunk_, width_, score_row_;
  int32_t* rows_;
  Segment* segment_;
  const T **k_rows_, **v_rows_;
  Acc *key_bias_, *row_bias_, *weights_;
};

template <class E>
class WeightedSumForward : WeightedSumBase<E> {
  using Base = WeightedSumBase<E>;
  using typename Base::Acc;
  using typename Base::T;
  using typename Base::V;
  using typename Base::Word;
  // Elements make up the micro-kernel's words without being widened.
  static constexpr bool kElementsAreWords = E::kPerWord * sizeof(T) == sizeof(Word);
  // Each is one, and sums are of their type.
  static constexpr bool kAsTheyAre = kElementsAreWords && E::kPerWord == 1;

 public:
  WeightedSumForward(const WeightedSumProblem& w, int64_t panel_rows, char* memory)
      : Base(w, memory),
        panel_rows_(panel_rows),
        panels_(ceil_div(w.seqlen_q, panel_rows)),
        whole_vectors_(w.head_dim % V::kLanes == 0),
        prefetches_(static_cast<double>(w.batch) * w.num_heads *
                        (static_cast<double>(w.seqlen_q) * w.seqlen_k +
                         (w.seqlen_q + w.seqlen_k) * w.head_dim) *
                        sizeof(T) >
                    (4 << 20)) {
    values_ = this->arena_.template take<Word>(words_for<E>(this->chunk_) * this->width_);
    out_ = this->arena_.template take<Acc>(panel_rows * this->width_);
  }
  size_t scratch_bytes() const { return this->arena_.used(); }

  // Panels [begin, end), counted along (batch, head, panel of queries).
  void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t pair = item / panels_, q_begin = item % panels_ * panel_rows_;
      last_of_run_ = item + 1 == end;
      run_panel(pair / this->w_.num_heads, pair % this->w_.num_heads, q_begin,
                min_of(this->w_.seqlen_q, q_begin + panel_rows_));
    }
  }

 private:
  void run_panel(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const WeightedSumProblem& w = this->w_;
    const int64_t panel = q_end - q_begin;
    const VisibleKeys keys = this->visible(b, h);
    ChunkBias<Acc> bias(this->as_.problem, this->kinds_, keys, b, h, this->key_bias_,
                        this->row_bias_);
    T* out = row_at<T>(w.out, w.out_stride, b, h, q_begin);
    if (w.seqlen_q <= kFewQueries) return run_few(b, h, q_begin, q_end, keys, bias, out);
    if (keys.count == 0)
      for (int64_t i = 0; i < panel; ++i) zero_row(out + i * w.out_stride[2], w.head_dim);
    const Blocks chunks(keys.count, kBackwardBlockN), blocks(panel, kForwardBlockM);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c), n = end - begin;
      key_rows<T>(this->as_.problem, keys, b, h, begin, end, this->k_rows_, this->v_rows_);
      bias.start_chunk(begin, end);
      const OperandB<E> values = values_of_chunk(keys, n);
      for (int64_t m = 0; m < blocks.count; ++m) {
        const int64_t first = blocks.begin(m), rows = blocks.end(m) - first;
        prefetcher_.clear();
        if (prefetches_) prefetch(b, h, q_begin + first + rows, q_end);
        const OperandA<E> weights =
            weights_of_block(b, h, q_begin + first, rows, keys, begin, end, bias);
        const int64_t vectors = this->width_ / V::kLanes;
        const int64_t words = weights.half ? words_within<E>(n) : words_for<E>(n);
        // Finished sums leave at once, and the next block's are formed where they were.
        const bool last = c + 1 == chunks.count;
        Acc* sums = last && c == 0 ? out_ : out_ + first * this->width_;
        if (last) {
          gemm_to_rows<E>(rows, words, weights, values,
                          {out + first * w.out_stride[2], w.out_stride[2], w.head_dim}, sums,
                          this->width_, c > 0, &prefetcher_);
        } else if (c == 0) {
          gemm<E, Into::kStore>(rows, vectors, words, weights, values, sums, this->width_,
                                {0, INT64_MAX}, &prefetcher_);
        } else {
          gemm<E, Into::kAdd>(rows, vectors, words, weights, values, sums, this->width_,
                              {0, INT64_MAX}, &prefetcher_);
        }
      }
    }
  }

  // Each value is read once, where it stands.
  void run_few(int64_t b, int64_t h, int64_t q_begin, int64_t q_end, const VisibleKeys& keys,
               ChunkBias<Acc>& bias, T* out) {
    const WeightedSumProblem& w = this->w_;
    zero_row(out_, (q_end - q_begin) * this->width_);
    const Blocks chunks(keys.count, kBackwardBlockN);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c), n = end - begin;
      key_rows<T>(this->as_.problem, keys, b, h, begin, end, this->k_rows_, this->v_rows_);
      bias.start_chunk(begin, end);
      for (int64_t i = q_begin; i < q_end; ++i) {
        this->gather_weights(b, h, i, keys, begin, end, bias.for_query(i), this->weights_);
        Acc* sums = out_ + (i - q_begin) * this->width_;
        if (prefetches_ && i == q_begin) {
          add_weighted_rows<V, true>(this->weights_, this->v_rows_, n, w.head_dim, sums);
        } else {
          add_weighted_rows<V>(this->weights_, this->v_rows_, n, w.head_dim, sums);
        }
      }
    }
    for (int64_t i = 0; i < q_end - q_begin; ++i)
      store_scaled_row<V>(out_ + i * this->width_, w.head_dim, Acc(1), out + i * w.out_stride[2]);
  }

  OperandB<E> values_of_chunk(const VisibleKeys& keys, int64_t n) {
    if (kAsTheyAre && whole_vectors_ && keys.segments[0].contiguous)
      return {reinterpret_cast<const Word*>(this->v_rows_[0]), false, this->w_.values_stride[2]};
    pack_across_rows<E>(this->v_rows_, n, this->w_.head_dim, values_, this->width_);
    return {values_, false, this->width_};
  }

  // The weights of a block of queries: where they stand, copied, or with what the mask skips at 0.
  OperandA<E> weights_of_block(int64_t b, int64_t h, int64_t i_begin, int64_t rows,
                               const VisibleKeys& keys, int64_t begin, int64_t end,
                               ChunkBias<Acc>& bias) {
    const int64_t n = end - begin, ld = this->score_row_;
    const int64_t* stride = this->w_.weights_stride;
    const bool plain =
        kElementsAreWords && !this->kinds_.dense && stride[3] == 1 && keys.segments[0].contiguous;
    const T* weights =
        row_at<const T>(this->w_.weights, stride, b, h, i_begin) + (plain ? keys.rows[begin] : 0);
    if (plain) return OperandA<E>::in_place(weights, stride[2], n);
    for (int64_t i = 0; i < rows; ++i) {
      Acc* row = this->weights_ + i * ld;
      this->gather_weights(b, h, i_begin + i, keys, begin, end, bias.for_query(i_begin + i), row);
      words_in_place<E>(row, 0, round_up(n, V::kLanes));
    }
    return {reinterpret_cast<const Word*>(this->weights_), ld, 1};
  }

  // Weights of the next block, or weights and values of the next head of this run.
  void prefetch(int64_t b, int64_t h, int64_t i_next, int64_t q_end) {
    const WeightedSumProblem& w = this->w_;
    const auto add = [&](const void* base, const int64_t* stride, int64_t row, int64_t rows,
                         int64_t width) {
      prefetcher_.add_rows(row_at<const T>(base, stride, b, h, row), stride[2] * int64_t{sizeof(T)},
                           rows, width * int64_t{sizeof(T)});
    };
    if (i_next == q_end) {
      if (last_of_run_ || q_end < w.seqlen_q) return;
      h = h + 1 == w.num_heads ? 0 : h + 1;
      b = h == 0 ? b + 1 : b;
      i_next = 0;
      add(w.values, w.values_stride, 0, min_of(w.seqlen_k, kBackwardBlockN), w.head_dim);
    }
    const int64_t rows = min_of(w.seqlen_q - i_next, kForwardBlockM);
    add(w.weights, w.weights_stride, i_next, rows, min_of(w.seqlen_k, kBackwardBlockN));
    add(w.out, w.out_stride, i_next, rows, w.head_dim);
  }

  int64_t panel_rows_, panels_;
  bool whole_vectors_, prefetches_, last_of_run_ = true;
  Prefetcher prefetcher_;
  Word* values_;
  Acc* out_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
