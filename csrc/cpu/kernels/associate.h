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
  }
  size_t scratch_bytes() const { return arena_.used(); }

  // Queries [q_begin, q_end) of one (b, h); for kHeadMean of all heads of b, in order.
  void run(int64_t b, int64_t h, int64_t q_begin, int64_t q_end) {
    const bool mean = a_.output == AssociateOutput::kHeadMean;
    for (int64_t i = q_begin; i < q_end; i += block_) {
      const int64_t end = min_of(q_end, i + block_);
      if (mean) {
        if (p_.total_keys > 0)
          std::memset(mean_row(b, i), 0, (end - i) * p_.total_keys * sizeof(Acc));
        for (int64_t head = 0; head < p_.num_heads; ++head) block(b, head, i, end);
      } else {
        block(b, h, i, end);
      }
    }
  }

 private:
  Acc* mean_row(int64_t b, int64_t i) const {
    return static_cast<Acc*>(a_.weights) + (b * p_.seqlen_q + i) * p_.total_keys;
  }

  void block(int64_t b, int64_t h, int64_t i_begin, int64_t i_end) {
    const VisibleKeys keys = find_visible_keys(p_, b, h, rows_, segments_);
    const int64_t rows = i_end - i_begin;
    const T* q = static_cast<const T*>(p_.q) + b * p_.q_stride[0] + h * p_.q_stride[1];
    for (int64_t i = 0; i < rows; ++i) q_rows_[i] = q + (i_begin + i) * p_.q_stride[2];
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
      for (int64_t i = 0; i < rows; ++i)
        finish_scores<V>(weights_ + i * row_ + begin, end - begin, static_cast<Acc>(p_.scale),
                         bias.for_query(i_begin + i));
    }
    for (int64_t i = 0; i < rows; ++i) {
      Acc* w = weights_ + i * row_;
      normalise(w, keys.count);
      emit(b, h, i_begin + i, keys, w);
    }
  }

  void normalise(Acc* w, int64_t n) {
    // Chunks need not begin at whole vectors, so the last one's padding may end before the row's.
    for (int64_t x = n; x < round_up(n, V::kLanes); ++x) w[x] = minus_infinity<Acc>();
    V lanes = V::set1(minus_infinity<Acc>());
    for (int64_t x = 0; x < n; x += V::kLanes) lanes = max(lanes, V::load(w + x));
    const Acc top = reduce_max(lanes);
    const Acc sum = exponentiate<V>(w, n, top == minus_infinity<Acc>() ? Acc(0) : top);
    scale_row<V>(w, n, sum == 0 ? Acc(0) : 1 / sum);
  }

  void emit(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, const Acc* w) {
    if (a_.output == AssociateOutput::kTopK) return emit_topk(b, h, i, keys, w);
    Acc* out;
    Acc factor = 1;
    if (a_.output == AssociateOutput::kHeadMean) {
      out = mean_row(b, i);
      factor = Acc(1) / static_cast<Acc>(p_.num_heads);
    } else {
      out = static_cast<Acc*>(a_.weights) +
            ((b * p_.num_heads + h) * p_.seqlen_q + i) * p_.total_keys;
      std::memset(out, 0, p_.total_keys * sizeof(Acc));
    }
    int64_t offset = 0;
    for (int s = 0; s < p_.num_sources; ++s) {
      for (int64_t x = keys.segments[s].begin; x < keys.segments[s].end; ++x)
        out[offset + keys.rows[x]] += factor * w[x];
      offset += p_.sources[s].seqlen_k;
    }
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
    const int64_t first = ((b * p_.num_heads + h) * p_.seqlen_q + i) * a_.topk;
    for (int64_t x = 0; x < a_.topk; ++x) {
      static_cast<Acc*>(a_.weights)[first + x] = x < found ? top_[x] : Acc(0);
      a_.indices[first + x] = x < found ? top_index_[x] : -1;
    }
  }

  const AttentionProblem& p_;
  const AssociateProblem& a_;
  TermKinds kinds_;
  Arena arena_;
  int64_t chunk_, words_, row_, block_;
  int32_t* rows_;
  Segment* segments_;
  const T **k_rows_, **v_rows_, **q_rows_;
  Word *k_packed_, *q_packed_;
  Acc *weights_, *key_bias_, *row_bias_, *top_;
  int64_t* top_index_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
