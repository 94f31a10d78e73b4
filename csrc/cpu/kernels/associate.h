// What attended to what: whole rows of normalised weights for a block of queries, reduced before
// they are written. Memory is that of the result plus a block of rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/attention_fwd.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// A block of rows takes at most 1 MB, so that it stays near the core.
constexpr int64_t kAssociateRowBytes = 1 << 20;
constexpr int64_t kAssociateBlockM = 64;

template <class E>
class Associate {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  using Word = typename E::Word;

 public:
  Associate(const AttentionProblem& p, const AssociateProblem& a, char* memory)
      : p_(p),
        a_(a),
        kinds_(p),
        plain_(scores_are_plain(p, kinds_, p.scale)),
        arena_(memory),
        chunk_(min_of(p.total_keys, kForwardBlockN)),
        words_(words_for<E>(p.head_dim)),
        row_(score_row<E>(p.total_keys + V::kLanes * (ceil_div(p.total_keys, kForwardBlockN) + 1))),
        block_(max_of(
            1, min_of(kAssociateBlockM, kAssociateRowBytes / (row_ * int64_t{sizeof(Acc)})))) {
    rows_ = arena_.take<int32_t>(p.total_keys);
    segments_ = arena_.take<Segment>(p.num_sources);
    k_rows_ = arena_.take<const T*>(chunk_);
    v_rows_ = arena_.take<const T*>(chunk_);
    q_rows_ = arena_.take<const T*>(block_);
    k_packed_ = arena_.take<Word>(words_ * round_up(chunk_, V::kLanes));
    q_packed_ = arena_.take<Word>(block_ * words_);
    weights_ = arena_.take<Acc>(block_ * row_);
    key_bias_ = arena_.take<Acc>(chunk_);
    row_bias_ = arena_.take<Acc>(chunk_);
    top_ = arena_.take<Acc>(a.topk);
    top_index_ = arena_.take<int64_t>(a.topk);
    key_total_ = arena_.take<double>(a.output == AssociateOutput::kKeyTotal ? p.total_keys : 0);
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Queries [q_begin, q_end) of one (b, h); for kHeadMean of all heads of b, in order; for
  // kKeyTotal all queries.
  void run(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const bool mean = a_.output == AssociateOutput::kHeadMean;
    const int64_t alive = max_of(q_begin, min_of(q_end, query_rows(p_, b).count));
    for (int64_t head = mean ? 0 : h; head < (mean ? p_.num_heads : h + 1); ++head)
      for (int64_t i = alive; i < q_end; ++i) emit_nothing(b, head, i);
    if (a_.output == AssociateOutput::kKeyTotal)
      for (int64_t j = 0; j < p_.total_keys; ++j) key_total_[j] = 0;
    for (int64_t i = q_begin; i < alive; i += block_) {
      const int64_t end = min_of(alive, i + block_);
      if (mean) {
        zero_row(mean_row(b, i), (end - i) * p_.total_keys);
        for (int64_t head = 0; head < p_.num_heads; ++head) block(b, head, i, end);
      } else {
        block(b, h, i, end);
      }
    }
    if (a_.output == AssociateOutput::kKeyTotal) {
      Acc* out = static_cast<Acc*>(a_.weights) + (b * p_.num_heads + h) * p_.total_keys;
      for (int64_t j = 0; j < p_.total_keys; ++j) out[j] = static_cast<Acc>(key_total_[j]);
    }
  }

 private:
  Acc* mean_row(int64_t b, int64_t i) const {
    return static_cast<Acc*>(a_.weights) + (b * p_.seqlen_q + i) * p_.total_keys;
  }

  void block(int64_t b, int64_t h, int64_t i_begin, int64_t i_end) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    const int64_t rows = i_end - i_begin;
    const T* q = row_at<const T>(p_.q, p_.q_stride, b, h, i_begin);
    for (int64_t i = 0; i < rows; ++i) q_rows_[i] = q + i * p_.q_stride[2];
    pack_along_row<E>(q_rows_, rows, p_.head_dim, q_packed_, words_);

    // Scores of all chunks stand side by side, each chunk from position begin on; a later chunk
    // overwrites the padding lanes of an earlier one.
    ChunkBias<Acc> bias(p_, kinds_, keys, b, h, key_bias_, row_bias_);
    const Blocks chunks(keys.count, kForwardBlockN);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t begin = chunks.begin(c), end = chunks.end(c);
      key_rows<T>(p_, keys, b, h, begin, end, k_rows_, v_rows_);
      pack_transposed<E>(k_rows_, end - begin, p_.head_dim, k_packed_);
      bias.start_chunk(begin, end);
      gemm<E, Into::kStore>(rows, ceil_div(end - begin, V::kLanes), words_, {q_packed_, words_, 1},
                            {k_packed_, true, 0}, weights_ + begin, row_);
      if (plain_) continue;
      for (int64_t i = 0; i < rows; ++i)
        products_to_scores<V>(p_, weights_ + i * row_ + begin, {0, end - begin},
                              bias.for_query(i_begin + i));
    }
    for (int64_t i = 0; i < rows; i += V::kLanes)
      emit_rows(b, h, i_begin + i, min_of(V::kLanes, rows - i), keys, weights_ + i * row_);
  }

  // rows x keys.count scores, or products where they are plain -> what is asked for, as many rows
  // at a time as a vector has lanes.
  void emit_rows(int64_t b, int64_t h, int64_t i0, int64_t rows, const VisibleKeys& keys,
                 Acc* scores) {
    const V hidden = V::set1(minus_infinity<Acc>()), zero = V::zero();
    const double factor = plain_ ? kLog2E * p_.scale : kLog2E;
    const Exponential<V> exponential(factor);
    const Range all = {0, keys.count};
    V lanes[V::kLanes];
    for (int x = 0; x < V::kLanes; ++x)
      lanes[x] = x < rows ? largest_product<V>(scores + x * row_, all) : hidden;
    alignas(64) Acc tops[V::kLanes], shifts[V::kLanes], sums[V::kLanes];
    const V top = max_of_rows(lanes), shift = select_equal(top, hidden, zero, top);
    top.store(tops);
    shift.store(shifts);
    if (a_.output == AssociateOutput::kEntropy) {
      for (int64_t x = 0; x < rows; ++x)
        emit_entropy(b, h, i0 + x, keys, scores + x * row_, tops[x], V::set1(shifts[x]),
                     V::set1(static_cast<Acc>(factor)), exponential);
      return;
    }
    for (int x = 0; x < V::kLanes; ++x) {
      lanes[x] = zero;
      // Chunk by chunk, which keeps chains of additions short: equal weights round in one
      // direction.
      for (int64_t j = 0; x < rows && j < keys.count; j += kForwardBlockN)
        lanes[x] = lanes[x] + exponentiate<E, false>(scores + x * row_,
                                                     {j, min_of(keys.count, j + kForwardBlockN)},
                                                     V::set1(shifts[x]), exponential);
    }
    sum_of_rows(lanes).store(sums);
    for (int64_t x = 0; x < rows; ++x) {
      const RowTotal<Acc> total = row_total(b, h, tops[x], sums[x]);
      write_statistics(b, h, i0 + x, total);
      emit(b, h, i0 + x, keys, scores + x * row_, total.inverse);
    }
  }

  RowTotal<Acc> row_total(int64_t b, int64_t h, Acc top, Acc sum) const {
    return plain_ ? plain_total<V>(p_, p_.scale, top, sum) : with_sink<V>(p_, b, h, top, sum);
  }

  // w: exponentials of the visible keys, to be multiplied by `inverse`.
  void emit(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, Acc* w, Acc inverse) {
    switch (a_.output) {
      case AssociateOutput::kTopK:
        scale_row<V>(w, keys.count, inverse);
        return emit_topk(b, h, i, keys, w);
      case AssociateOutput::kHeadMean:
        return scatter(keys, w, inverse / static_cast<Acc>(p_.num_heads), mean_row(b, i));
      case AssociateOutput::kKeyTotal:
        return scatter(keys, w, static_cast<double>(inverse), key_total_);
      default: {
        Acc* out = static_cast<Acc*>(a_.weights) + row_index(p_, b, h, i) * p_.total_keys;
        zero_row(out, p_.total_keys);
        return scatter(keys, w, inverse, out);
      }
    }
  }

  // out[j] += factor * w at the key's place along the padded concatenation.
  template <class Sum>
  void scatter(const VisibleKeys& keys, const Acc* w, Sum factor, Sum* out) {
    for_each_stretch(p_, keys, 0, keys.count,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       Sum* place = out + offset_of(s);
                       if (contiguous) {
                         place += keys.rows[from];
                         for (int64_t x = from; x < to; ++x) place[x - from] += factor * w[x];
                       } else {
                         for (int64_t x = from; x < to; ++x) place[keys.rows[x]] += factor * w[x];
                       }
                     });
  }

  int64_t offset_of(int source) const {
    int64_t offset = 0;
    for (int s = 0; s < source; ++s) offset += p_.sources[s].seqlen_k;
    return offset;
  }

  // -sum w log w with w = e^t / total, t <= 0: both parts of log w have one sign, nothing cancels.
  void emit_entropy(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, const Acc* scores,
                    Acc top, V shift, V factor, const Exponential<V>& exponential) {
    const V zero = V::zero();
    constexpr int64_t kChain = kSumChain * V::kLanes;
    V sums = zero, products = zero;
    for (int64_t j = 0; j < keys.count; j += kChain) {
      V chain_sums = zero, chain_products = zero;
      for (int64_t x = j; x < min_of(keys.count, j + kChain); x += V::kLanes) {
        const V difference = V::load(scores + x) - shift, e = exponential(difference);
        chain_sums = chain_sums + e;
        chain_products = chain_products + select_equal(e, zero, zero, e * (difference * factor));
      }
      sums = sums + chain_sums;
      products = products + chain_products;
    }
    const Acc sum = reduce_add(sums), log_sum = reduce_add(products) / static_cast<Acc>(kLog2E);
    const RowTotal<Acc> total = row_total(b, h, top, sum);
    write_statistics(b, h, i, total);
    // Beside a sink far above every key the weights are 0, however far log_total is.
    const Acc log_total = natural_log(total.sum) + (total.top - top);
    static_cast<Acc*>(a_.weights)[row_index(p_, b, h, i)] =
        total.inverse == 0 ? Acc(0) : total.inverse * (log_total * sum - log_sum);
  }

  // What a query gives that does not exist.
  void emit_nothing(int64_t b, int64_t h, int64_t i) {
    const int64_t row = row_index(p_, b, h, i);
    write_statistics(b, h, i, RowTotal<Acc>::none());
    Acc* weights = static_cast<Acc*>(a_.weights);
    switch (a_.output) {
      case AssociateOutput::kWeights:
        zero_row(weights + row * p_.total_keys, p_.total_keys);
        break;
      case AssociateOutput::kHeadMean:
        zero_row(mean_row(b, i), p_.total_keys);
        break;
      case AssociateOutput::kTopK:
        for (int64_t x = row * a_.topk; x < (row + 1) * a_.topk; ++x) {
          weights[x] = 0;
          a_.indices[x] = -1;
        }
        break;
      case AssociateOutput::kEntropy:
        weights[row] = 0;
        break;
      case AssociateOutput::kKeyTotal:
        break;
    }
  }

  void write_statistics(int64_t b, int64_t h, int64_t i, const RowTotal<Acc>& total) {
    if (!p_.row_top) return;
    const int64_t row = row_index(p_, b, h, i);
    static_cast<Acc*>(p_.row_top)[row] = total.top;
    static_cast<Acc*>(p_.row_sum)[row] = total.sum;
  }

  // Insertion into a sorted list: k is small, and a weight that does not reach the list costs one
  // comparison. Equal weights keep the order of the keys.
  void emit_topk(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, const Acc* w) {
    int64_t found = 0, offset = 0;
    for (int s = 0; s < p_.num_sources; ++s) {
      for (int64_t x = keys.segments[s].begin; x < keys.segments[s].end; ++x) {
        if (w[x] == 0 || (found == a_.topk && !(w[x] > top_[found - 1]))) continue;
        int64_t at = found < a_.topk ? found++ : found - 1;
        for (; at > 0 && w[x] > top_[at - 1]; --at) {
          top_[at] = top_[at - 1];
          top_index_[at] = top_index_[at - 1];
        }
        top_[at] = w[x];
        top_index_[at] = offset + keys.rows[x];
      }
      offset += p_.sources[s].seqlen_k;
    }
    const int64_t first = row_index(p_, b, h, i) * a_.topk;
    for (int64_t x = 0; x < a_.topk; ++x) {
      static_cast<Acc*>(a_.weights)[first + x] = x < found ? top_[x] : Acc(0);
      a_.indices[first + x] = x < found ? top_index_[x] : -1;
    }
  }

  const AttentionProblem& p_;
  const AssociateProblem& a_;
  TermKinds kinds_;
  bool plain_;
  Arena arena_;
  int64_t chunk_, words_, row_, block_;
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_, **q_rows_;
  Word *k_packed_, *q_packed_;
  Acc *weights_, *key_bias_, *row_bias_, *top_;
  int64_t* top_index_;
  double* key_total_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
