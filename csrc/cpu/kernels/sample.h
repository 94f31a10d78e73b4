// One sample of a problem: which rows are its queries and keys, padded or packed.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/engine.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

inline int64_t length_at(const void* lengths, bool are_int64, int64_t b, int64_t limit) {
  const int64_t length =
      are_int64 ? static_cast<const int64_t*>(lengths)[b] : static_cast<const int32_t*>(lengths)[b];
  return max_of(0, min_of(length, limit));
}

// Rows of one sample, counted from first in the tensor (0 where samples are padded).
struct Rows {
  int64_t first, count;
};

inline Rows packed_rows(const int32_t* cu_seqlens, int64_t b, int64_t longest) {
  return {cu_seqlens[b], min_of(cu_seqlens[b + 1] - cu_seqlens[b], longest)};
}

inline Rows query_rows(const AttentionProblem& p, int64_t b) {
  if (p.cu_seqlens_q) return packed_rows(p.cu_seqlens_q, b, p.seqlen_q);
  if (!p.query_lengths) return {0, p.seqlen_q};
  return {0, length_at(p.query_lengths, p.query_lengths_are_int64, b, p.seqlen_q)};
}

inline Rows key_rows_of(const KeySource& source, int64_t b) {
  if (source.cu_seqlens) return packed_rows(source.cu_seqlens, b, source.seqlen_k);
  if (!source.lengths) return {0, source.seqlen_k};
  return {0, length_at(source.lengths, source.lengths_are_int64, b, source.seqlen_k)};
}

// Where query i of (b, h) stands in lse and in the statistics of rows.
inline int64_t row_index(const AttentionProblem& p, int64_t b, int64_t h, int64_t i) {
  if (p.cu_seqlens_q) return h * p.total_q + p.cu_seqlens_q[b] + i;
  return (b * p.num_heads + h) * p.seqlen_q + i;
}

inline int64_t key_head(const AttentionProblem& p, const KeySource& source, int64_t h) {
  return h / (p.num_heads / source.num_heads_k);
}

// Row `row` of (b, h) of a tensor with strides of batch, head and row.
template <class T, class Data>
T* row_at(Data* base, const int64_t* stride, int64_t b, int64_t h, int64_t row) {
  return static_cast<T*>(base) + b * stride[0] + h * stride[1] + row * stride[2];
}

// Positions of keys that a query sees, whatever masks say: a stretch that moves with the query.
struct Band {
  bool open;
  int64_t first, last;  // of query 0; far away where a side is open

  Band(const AttentionProblem& p, int64_t b) {
    constexpr int64_t kFar = int64_t{1} << 60;
    open = p.window_left < 0 && p.window_right < 0;
    const int64_t shift =
        p.lower_right && !open ? key_rows_of(p.sources[0], b).count - query_rows(p, b).count : 0;
    first = p.window_left < 0 ? -kFar : shift - p.window_left;
    last = p.window_right < 0 ? kFar : shift + p.window_right;
  }
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
