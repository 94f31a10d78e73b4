// Backward of the weighted sum with given weights:
//
//   dW = dout V^T,  dV = W^T dout,  both 0 where the key is skipped
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/weighted_sum.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class WeightedSumBackwardTask : WeightedSumBase<E> {
  using Base = WeightedSumBase<E>;
  using typename Base::Acc;
  using typename Base::T;
  using typename Base::V;
  using typename Base::Word;
  // Each element is a word of the micro-kernel, and sums are of their type.
  static constexpr bool kAsTheyAre = E::kPerWord == 1 && sizeof(T) == sizeof(Word);

 public:
  WeightedSumBackwardTask(const WeightedSumProblem& w, const WeightedSumBackward& g, char* memory)
      : Base(w, memory),
        g_(g),
        words_(words_for<E>(w.head_dim)),
        dout_in_place_(rows_are_words_of<E>(g.dout, g.dout_stride, w.head_dim)) {
    constexpr int64_t kBlock = kForwardBlockM;
    Arena& arena = this->arena_;
    dout_rows_ = arena.take<const T*>(kBlock);
    weight_rows_ = arena.take<const T*>(kBlock);
    values_ = arena.take<Word>(words_ * round_up(this->chunk_, V::kLanes));
    dout_along_ = arena.take<Word>(kBlock * words_);
    dout_across_ = arena.take<Word>(words_for<E>(kBlock) * this->width_);
    dweights_ = arena.take<Acc>(kBlock * this->score_row_);
    if (!kAsTheyAre) weight_words_ = arena.take<Word>(words_for<E>(kBlock) * this->score_row_);
    dvalues_ = arena.take<Acc>(this->chunk_ * this->width_);
  }
  size_t scratch_bytes() const { return this->arena_.used(); }

  // Pairs (batch, head) [begin, end).
  void run(int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      last_of_run_ = pair + 1 == end;
      run_head(pair / this->w_.num_heads, pair % this->w_.num_heads);
    }
  }

 private:
  void run_head(int64_t b, int64_t h) {
    const WeightedSumProblem& w = this->w_;
    const int64_t bh = b * w.num_heads + h;
    T* dweights =
        g_.dweights ? static_cast<T*>(g_.dweights) + bh * w.seqlen_q * w.seqlen_k : nullptr;
    T* dvalues = g_.dvalues ? static_cast<T*>(g_.dvalues) + bh * w.seqlen_k * w.head_dim : nullptr;
    const VisibleKeys keys = this->visible(b, h);
    // What is skipped, and what no query sums.
    if (dweights && keys.count < w.seqlen_k)
      std::memset(dweights, 0, w.seqlen_q * w.seqlen_k * sizeof(T));
    if (dvalues && (keys.count < w.seqlen_k || w.seqlen_q == 0))
      std::memset(dvalues, 0, w.seqlen_k * w.head_dim * sizeof(T));
    ChunkBias<Acc> bias(this->as_.problem, this->kinds_, keys, b, h, this->key_bias_,
                        this->row_bias_);
    const Blocks chunks(keys.count, kBackwardBlockN), blocks(w.seqlen_q, kForwardBlockM);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c);
      key_rows<T>(this->as_.problem, keys, b, h, begin, end, this->k_rows_, this->v_rows_);
      if (dweights) pack_transposed<E>(this->v_rows_, end - begin, w.head_dim, values_);
      bias.start_chunk(begin, end);
      for (int64_t m = 0; m < blocks.count; ++m) {
        const Block block = {b,     h,   blocks.begin(m), blocks.end(m) - blocks.begin(m),
                             begin, end, m == 0,          m + 1 == blocks.count};
        prefetcher_.clear();
        prefetch(block, c + 1 == chunks.count);
        take_dout(block);
        if (dweights) weight_gradient(block, keys, bias, dweights);
        if (dvalues) value_gradient(block, keys, bias, dvalues);
      }
    }
  }

  // Queries [i, i + rows) against keys [begin, end) of the list.
  struct Block {
    int64_t b, h, i, rows, begin, end;
    bool first, last;  // of the chunk's blocks
  };

  void take_dout(const Block& at) {
    const T* dout = row_at<const T>(g_.dout, g_.dout_stride, at.b, at.h, at.i);
    for (int64_t i = 0; i < at.rows; ++i) dout_rows_[i] = dout + i * g_.dout_stride[2];
  }

  void weight_gradient(const Block& at, const VisibleKeys& keys, ChunkBias<Acc>& bias,
                       T* dweights) {
    const WeightedSumProblem& w = this->w_;
    const int64_t n = at.end - at.begin, ld = this->score_row_;
    OperandA<E> dout = {dout_along_, words_, 1};
    if (dout_in_place_) {
      dout = {reinterpret_cast<const Word*>(dout_rows_[0]), g_.dout_stride[2] / E::kPerWord, 1};
    } else {
      pack_along_row<E>(dout_rows_, at.rows, w.head_dim, dout_along_, words_);
    }
    const OperandB<E> values = {values_, true, 0};
    T* out = dweights + at.i * w.seqlen_k;
    if (keys.segments[0].contiguous && !this->kinds_.dense) {
      return gemm_to_rows<E>(at.rows, words_, dout, values,
                             {out + keys.rows[at.begin], w.seqlen_k, n}, dweights_, ld, false,
                             &prefetcher_);
    }
    gemm<E, Into::kStore>(at.rows, ceil_div(n, V::kLanes), words_, dout, values, dweights_, ld,
                          {0, INT64_MAX}, &prefetcher_);
    for (int64_t i = 0; i < at.rows; ++i) {
      const Acc* skipped = bias.for_query(at.i + i);
      Acc* row = dweights_ + i * ld;
      if (skipped)
        for (int64_t x = 0; x < n; ++x) row[x] = skipped[x] == 0 ? row[x] : Acc(0);
      for (int64_t x = 0; x < n; ++x)
        store_row<V>(row + x, 1, out + i * w.seqlen_k + keys.rows[at.begin + x]);
    }
  }

  void value_gradient(const Block& at, const VisibleKeys& keys, ChunkBias<Acc>& bias, T* dvalues) {
    const WeightedSumProblem& w = this->w_;
    const int64_t n = at.end - at.begin, width = this->width_;
    const OperandA<E> weights = weights_across(at, keys, bias);
    OperandB<E> dout = {dout_across_, false, width};
    if (kAsTheyAre && !this->kinds_.dense && w.head_dim % V::kLanes == 0) {
      dout = {reinterpret_cast<const Word*>(dout_rows_[0]), false, g_.dout_stride[2]};
    } else {
      pack_across_rows<E>(dout_rows_, at.rows, w.head_dim, dout_across_, width);
    }
    const int64_t words = words_for<E>(at.rows);
    if (!at.last) {
      if (at.first)
        return gemm<E, Into::kStore>(n, width / V::kLanes, words, weights, dout, dvalues_, width,
                                     {0, INT64_MAX}, &prefetcher_);
      return gemm<E, Into::kAdd>(n, width / V::kLanes, words, weights, dout, dvalues_, width,
                                 {0, INT64_MAX}, &prefetcher_);
    }
    // Rows of skipped keys lie between those of a list with gaps, which are sorted out afterwards.
    const bool contiguous = keys.segments[0].contiguous;
    if (contiguous)
      return gemm_to_rows<E>(n, words, weights, dout,
                             {dvalues + keys.rows[at.begin] * w.head_dim, w.head_dim, w.head_dim},
                             dvalues_, width, !at.first, &prefetcher_);
    if (at.first) {
      gemm<E, Into::kStore>(n, width / V::kLanes, words, weights, dout, dvalues_, width);
    } else {
      gemm<E, Into::kAdd>(n, width / V::kLanes, words, weights, dout, dvalues_, width);
    }
    for (int64_t x = 0; x < n; ++x)
      store_row<V>(dvalues_ + x * width, w.head_dim,
                   dvalues + keys.rows[at.begin + x] * w.head_dim);
  }

  // W^T: a row a key, summed over queries. Nulls rows of dout that are not to be read.
  OperandA<E> weights_across(const Block& at, const VisibleKeys& keys, ChunkBias<Acc>& bias) {
    const WeightedSumProblem& w = this->w_;
    const int64_t* stride = w.weights_stride;
    const int64_t n = at.end - at.begin, ld = this->score_row_;
    if (stride[3] == 1 && keys.segments[0].contiguous && !this->kinds_.dense) {
      const T* weights = row_at<const T>(w.weights, stride, at.b, at.h, at.i) + keys.rows[at.begin];
      if (kAsTheyAre) return {reinterpret_cast<const Word*>(weights), 1, stride[2]};
      for (int64_t i = 0; i < at.rows; ++i) weight_rows_[i] = weights + i * stride[2];
      pack_across_rows<E>(weight_rows_, at.rows, n, weight_words_, ld);
      return {weight_words_, 1, ld};
    }
    for (int64_t i = 0; i < at.rows; ++i) {
      const Acc* skipped = bias.for_query(at.i + i);
      this->gather_weights(at.b, at.h, at.i + i, keys, at.begin, at.end, skipped,
                           this->weights_ + i * ld);
      // A query that takes none of these keys gives them no gradient, whatever its dout holds.
      bool takes_any = !skipped;
      for (int64_t x = 0; x < n && !takes_any; ++x) takes_any = skipped[x] == 0;
      if (!takes_any) dout_rows_[i] = nullptr;
    }
    if constexpr (E::kPerWord == 1) {
      return {this->weights_, 1, ld};
    } else {
      for (int64_t i = 0; i < at.rows; i += 2)
        for (int64_t x = 0; x < n; x += V::kLanes) {
          const Acc* p = this->weights_ + i * ld + x;
          store_pairs(V::load(p), i + 1 < at.rows ? V::load(p + ld) : V::zero(),
                      weight_words_ + i / 2 * ld + x);
        }
      return {weight_words_, 1, ld};
    }
  }

  // What the next block reads and writes, or the next head of this run.
  void prefetch(const Block& at, bool last_chunk) {
    const WeightedSumProblem& w = this->w_;
    int64_t b = at.b, h = at.h, i = at.i + at.rows;
    if (at.last) {
      if (!last_chunk || last_of_run_) return;
      h = h + 1 == w.num_heads ? 0 : h + 1;
      b = h == 0 ? b + 1 : b;
      i = 0;
      const Rows keys = {0, min_of(w.seqlen_k, kBackwardBlockN)};
      prefetcher_.add_head<T>(w.values, w.values_stride, b, h, keys, w.head_dim);
      prefetch_gradient(g_.dvalues, b, h, w.seqlen_k, keys, w.head_dim, w.head_dim);
    }
    const Rows rows = {i, min_of(w.seqlen_q - i, kForwardBlockM)};
    const int64_t keys = min_of(w.seqlen_k, kBackwardBlockN);
    prefetcher_.add_head<T>(g_.dout, g_.dout_stride, b, h, rows, w.head_dim);
    prefetcher_.add_head<T>(w.weights, w.weights_stride, b, h, rows, keys);
    prefetch_gradient(g_.dweights, b, h, w.seqlen_q, rows, w.seqlen_k, keys);
  }
  // Of a contiguous one, [batch, num_heads, seqlen, width].
  void prefetch_gradient(void* base, int64_t b, int64_t h, int64_t seqlen, Rows rows, int64_t width,
                         int64_t columns) {
    const int64_t stride[3] = {this->w_.num_heads * seqlen * width, seqlen * width, width};
    prefetcher_.add_head<T>(base, stride, b, h, rows, columns);
  }

  const WeightedSumBackward& g_;
  int64_t words_;
  bool dout_in_place_, last_of_run_ = true;
  Prefetcher prefetcher_;
  const T **dout_rows_, **weight_rows_;
  Word *values_, *dout_along_, *dout_across_, *weight_words_ = nullptr;
  Acc *dweights_, *dvalues_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
