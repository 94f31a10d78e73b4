// Few queries to a key head: matrix instructions would leave most of their 16 rows empty, and what
// takes the time is reading keys and values, once. Lanes stand side by side along a row, 16 bytes
// each; as many such groups as fit a warp have a key each, and the queries are in registers. A warp
// walks blocks of keys of its own: nobody waits for anybody until the end.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "cuda/alignment.h"
#include "cuda/dropout.h"
#include "cuda/engine.h"
#include "cuda/few_tiling.h"
#include "cuda/launch.h"
#include "cuda/row_chunk.h"
#include "cuda/scores.h"

namespace crossmodal::cuda {

// A lane's part of a row, as it lies in memory.
template <int kChunks>
struct RowPart {
  Chunk chunk[kChunks];
};

// Element e of a chunk that was 0, by its bits: an array of elements would live in memory.
template <class T>
__device__ __forceinline__ void put_element(Chunk& chunk, int e, const T& x) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  const int bit = e * 8 * static_cast<int>(sizeof(T));
  chunk.words[bit / 32] |= static_cast<uint32_t>(bits) << bit % 32;
  if (sizeof(T) == 8) chunk.words[bit / 32 + 1] = static_cast<uint32_t>(bits >> 32);
}

// kRows queries at a time, kUnroll keys of each group of lanes.
template <class E, int kChunks, int kRows, int kUnroll>
class FewQueries {
 public:
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kPerChunk = 16 / sizeof(T), kElements = kChunks * kPerChunk;
  using Part = RowPart<kChunks>;

  __device__ FewQueries(const Problem& p, const FewTiling& tiling, int b, int key_head,
                        int first_row)
      : p(p),
        t(tiling),
        b(b),
        key_head_(key_head),
        band(p, b),
        queries(query_rows(p, b)),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32) {
    const int seqlen_q = max(1, static_cast<int>(p.seqlen_q));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + r;
      h[r] = key_head * t.heads + row / seqlen_q;
      i[r] = row < t.rows ? row % seqlen_q : -1;
    }
  }

  // Whether row r is a query within its sample's length.
  __device__ bool is_query(int r) const { return i[r] >= 0 && i[r] < queries.count; }

  // -- lanes -------------------------------------------------------------------------------------

  __device__ int groups() const { return 32 >> t.log_lanes; }
  __device__ int group() const { return lane >> t.log_lanes; }
  __device__ int block_keys() const { return groups() * kUnroll; }
  // Which of a row's is chunk c of this lane.
  __device__ int chunk_of(int c) const { return (lane & (t.lanes() - 1)) + (c << t.log_lanes); }
  // Where this lane's element e stands in its row.
  __device__ int column_of(int e) const {
    return chunk_of(e / kPerChunk) * kPerChunk + e % kPerChunk;
  }

  // Sums over the lanes of a row, for each x; then over the groups of a warp.
  template <int kCount>
  __device__ __forceinline__ void sum_along_row(Acc (&x)[kCount]) const {
    for (int d = t.lanes() / 2; d > 0; d /= 2)
#pragma unroll
      for (int n = 0; n < kCount; ++n) x[n] += __shfl_xor_sync(0xffffffffu, x[n], d);
  }
  template <int kCount>
  __device__ __forceinline__ void sum_over_groups(Acc (&x)[kCount]) const {
    for (int d = t.lanes(); d < 32; d *= 2)
#pragma unroll
      for (int n = 0; n < kCount; ++n) x[n] += __shfl_xor_sync(0xffffffffu, x[n], d);
  }
  __device__ __forceinline__ Acc largest_of_groups(Acc x) const {
    for (int d = t.lanes(); d < 32; d *= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
  }

  // -- rows --------------------------------------------------------------------------------------

  // Zeros where it is not there, without a look at memory.
  __device__ __forceinline__ Part read(const GlobalRows<T>& from, int64_t row, bool there) const {
    Part part;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = chunk_of(c) * kPerChunk;
      const int count = there ? min(kPerChunk, from.width - column) : 0;
      const T* source = from.base + row * from.stride + column;
      part.chunk[c] = {};
      if (from.aligned && count == kPerChunk) {
        load_once(part.chunk[c].words, source);
      } else if (count > 0) {
#pragma unroll
        for (int e = 0; e < kPerChunk; ++e)
          if (e < count) put_element(part.chunk[c], e, source[e]);
      }
    }
    return part;
  }

  __device__ static __forceinline__ void to_numbers(const Part& part, Acc (&x)[kElements]) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) chunk_to_numbers<T>(part.chunk[c], x + c * kPerChunk);
  }

  // Row r of a tensor of queries.
  __device__ __forceinline__ void read_query(const void* base, const int64_t (&stride)[3],
                                             int64_t width, bool aligned, int r, bool there,
                                             Acc (&x)[kElements]) const {
    const GlobalRows<T> rows = {row_at<const T>(base, stride, b, h[r], queries.first), stride[2],
                                static_cast<int>(width), aligned};
    to_numbers(read(rows, i[r], there), x);
  }

  __device__ GlobalRows<T> key_rows(const KeySource& source, int s,
                                    const Alignment& aligned) const {
    const int first = key_rows_of(source, b).first;
    return {row_at<const T>(source.k, source.k_stride, b, head_of(s), first), source.k_stride[2],
            static_cast<int>(p.head_dim), aligned.key(s)};
  }
  __device__ GlobalRows<T> value_rows(const KeySource& source, int s,
                                      const Alignment& aligned) const {
    const int first = key_rows_of(source, b).first;
    return {row_at<const T>(source.v, source.v_stride, b, head_of(s), first), source.v_stride[2],
            static_cast<int>(p.head_dim_v), aligned.value(s)};
  }
  __device__ int head_of(int source) const { return key_head(p, source, key_head_ * t.heads); }

  // -- scores ------------------------------------------------------------------------------------

  // Whether any of the rows may see key j, as far as masks say.
  __device__ bool is_seen_by_any(const KeySource& source, int j) const {
    if (source.num_terms == 0) return true;
    bool seen = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (is_query(r)) seen |= is_seen(p, source, b, h[r], i[r], i[r], j);
    return seen;
  }

  // Of row r and a key that is `there`, -inf where they do not see each other.
  __device__ __forceinline__ Acc score(bool plain, const KeySource& source, int r, int j,
                                       bool there, Acc product, Acc* slope) const {
    if (!there || !is_query(r) || (!band.open && band.hides(i[r], j))) return minus_infinity<Acc>();
    return plain ? product : product_to_score(p, source, b, h[r], i[r], j, product, slope);
  }

  const Problem& p;
  const FewTiling& t;
  int b;
  int h[kRows], i[kRows];  // of each row: its head, and its query, or -1
  int key_head_;
  Band band;
  Rows queries;
  int lane, warp;
};

}  // namespace crossmodal::cuda
