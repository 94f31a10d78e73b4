// One sample of a problem: which rows are its queries and keys, padded or packed. Lengths and
// offsets are read on the device, so that a captured graph follows them when they change.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/problem.h"

namespace crossmodal::cuda {

__device__ inline int length_at(const void* lengths, bool are_int64, int64_t b, int64_t limit) {
  const int64_t length =
      are_int64 ? static_cast<const int64_t*>(lengths)[b] : static_cast<const int32_t*>(lengths)[b];
  return static_cast<int>(max(int64_t{0}, min(length, limit)));
}

// Rows of one sample, counted from first in the tensor (0 where samples are padded).
struct Rows {
  int first, count;
};

// Offsets that leave [0, total] or descend are clamped: nothing is read out of bounds.
__device__ inline Rows packed_rows(const int32_t* cu_seqlens, int64_t b, int64_t longest,
                                   int64_t total) {
  const int64_t first = max(int64_t{0}, min(int64_t{cu_seqlens[b]}, total));
  const int64_t end = max(first, min(int64_t{cu_seqlens[b + 1]}, total));
  return {static_cast<int>(first), static_cast<int>(min(end - first, longest))};
}

__device__ inline Rows query_rows(const Problem& p, int64_t b) {
  if (p.cu_seqlens_q) return packed_rows(p.cu_seqlens_q, b, p.seqlen_q, p.total_q);
  if (!p.query_lengths) return {0, static_cast<int>(p.seqlen_q)};
  return {0, length_at(p.query_lengths, p.query_lengths_are_int64, b, p.seqlen_q)};
}

__device__ inline Rows key_rows_of(const KeySource& source, int64_t b) {
  if (source.cu_seqlens) return packed_rows(source.cu_seqlens, b, source.seqlen_k, source.total_k);
  if (!source.lengths) return {0, static_cast<int>(source.seqlen_k)};
  return {0, length_at(source.lengths, source.lengths_are_int64, b, source.seqlen_k)};
}

// Packed rows between this sample's and the next one's, which belong to nobody: [begin, end). The
// first and the last sample take what stands before and after all of them.
struct Gap {
  int begin, end;
};
__device__ inline Gap gap_after(const int32_t* cu_seqlens, const Rows& rows, int64_t b,
                                int64_t batch, int64_t total) {
  const int64_t next = b + 1 < batch ? int64_t{cu_seqlens[b + 1]} : total;
  return {rows.first + rows.count, static_cast<int>(min(next, total))};
}
__device__ inline Gap gap_before(const Rows& rows, int64_t b) {
  return {0, b == 0 ? rows.first : 0};
}

// Where query i of (b, h) stands in lse and in the statistics of rows.
__device__ inline int64_t row_index(const Problem& p, int64_t b, int64_t h, const Rows& queries,
                                    int64_t i) {
  if (p.cu_seqlens_q) return h * p.total_q + queries.first + i;
  return (b * p.num_heads + h) * p.seqlen_q + i;
}

__device__ inline int key_head(const Problem& p, int source, int64_t h) {
  return static_cast<int>(h) / p.group[source];
}

// Row `row` of (b, h) of a tensor with strides of batch, head and row.
template <class T, class Data>
__device__ T* row_at(Data* base, const int64_t* stride, int64_t b, int64_t h, int64_t row) {
  return static_cast<T*>(base) + b * stride[0] + h * stride[1] + row * stride[2];
}

// Positions of keys that a query sees, whatever masks say: a stretch that moves with the query.
struct Band {
  bool open;
  int first, last;  // of query 0; far away where a side is open

  __device__ Band(const Problem& p, int64_t b) {
    // As far as any key is from any query; sums of it and a position do not overflow.
    constexpr int64_t kFar = kMostRows;
    open = p.window_left < 0 && p.window_right < 0;
    const int64_t shift =
        p.lower_right && !open ? key_rows_of(p.source[0], b).count - query_rows(p, b).count : 0;
    first = p.window_left < 0 ? -kFar : static_cast<int>(max(-kFar, shift - p.window_left));
    last = p.window_right < 0 ? kFar : static_cast<int>(min(kFar, shift + p.window_right));
  }

  __device__ bool hides(int i, int j) const { return j < i + first || j > i + last; }
};

}  // namespace crossmodal::cuda
