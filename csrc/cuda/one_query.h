// One query to a head of keys, scores that are plain, rows that lanes cover with 16 bytes each, and
// so many heads of all samples that each has a warp to itself: it walks the keys from first to last
// and writes what it found. No memory is shared, and nobody waits for anybody. What else there is
// takes few_queries.h.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/few_tiling.h"
#include "cuda/row_chunk.h"
#include "cuda/sample.h"

namespace crossmodal::cuda {

// A lane's 16 bytes of each row of a head. Rows are fewer than 2^31 bytes apart, so that finding
// one is a single instruction.
struct LaneRows {
  char* first;
  int stride;  // in bytes

  __device__ __forceinline__ Chunk* at(int row) const {
    return reinterpret_cast<Chunk*>(row_address(first, row, stride));
  }
};

// kUnroll keys of each group of lanes at a time.
template <class E, int kLanes, int kUnroll>
class OneQuery {
 public:
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kElements = 16 / sizeof(T);
  static constexpr int kGroups = 32 / kLanes;  // of lanes: each has a key
  static constexpr int kBlock = kGroups * kUnroll;

  __device__ OneQuery(const Problem& p, int pair)
      : p(p),
        pair(pair),
        b(pair / static_cast<int>(p.num_heads)),
        h(pair % static_cast<int>(p.num_heads)),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  __device__ int group() const { return lane / kLanes; }

  // -- rows --------------------------------------------------------------------------------------

  // This lane's part of the query's row of a tensor.
  template <class Data>
  __device__ Chunk* query_part(Data* base, const int64_t (&stride)[3]) const {
    return part(base, stride, h);
  }
  __device__ void read_query(const void* base, const int64_t (&stride)[3],
                             Acc (&x)[kElements]) const {
    Chunk chunk;
    load_once(chunk.words, query_part(base, stride));
    chunk_to_numbers<T>(chunk, x);
#pragma unroll
    for (int e = 0; e < kElements; ++e) keep(x[e]);
  }
  // Of the rows of keys or values of source s.
  template <class Data>
  __device__ LaneRows rows_of(int s, Data* base, const int64_t (&stride)[3]) const {
    return {reinterpret_cast<char*>(part(base, stride, key_head(p, s, h))),
            static_cast<int>(stride[2]) * static_cast<int>(sizeof(T))};
  }

  // This lane's keys of a block, from key j on. Beyond the last one it is read again.
  __device__ static __forceinline__ void load(const LaneRows& rows, int j, int last,
                                              Chunk (&x)[kUnroll]) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) load_once(x[u].words, rows.at(min(j + u * kGroups, last)));
  }

  // step(whole, j): of keys [0, count) a block, of which this lane's first is j; and whether it is
  // known to exist as a whole, which only the last one need not.
  template <class Step>
  __device__ __forceinline__ void walk(int count, Step step) const {
    int begin = 0;
    for (; begin + kBlock <= count; begin += kBlock) step(std::true_type{}, begin + group());
    if (begin < count) step(std::false_type{}, begin + group());
  }

  // -- lanes -------------------------------------------------------------------------------------

  template <int kCount>
  __device__ static __forceinline__ void sum_along_row(Acc (&x)[kCount]) {
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2)
#pragma unroll
      for (int n = 0; n < kCount; ++n) x[n] += __shfl_xor_sync(0xffffffffu, x[n], d);
  }
  template <int kCount>
  __device__ static __forceinline__ void sum_over_groups(Acc (&x)[kCount]) {
#pragma unroll
    for (int d = kLanes; d < 32; d *= 2)
#pragma unroll
      for (int n = 0; n < kCount; ++n) x[n] += __shfl_xor_sync(0xffffffffu, x[n], d);
  }
  __device__ static __forceinline__ Acc largest_of_groups(Acc x) {
#pragma unroll
    for (int d = kLanes; d < 32; d *= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
  }

  const Problem& p;
  int pair;  // of sample and head: where the query stands in lse and in the statistics of rows
  int b, h, lane;

 private:
  template <class Data>
  __device__ Chunk* part(Data* base, const int64_t (&stride)[3], int head) const {
    using Plain = std::remove_const_t<Data>;
    return reinterpret_cast<Chunk*>(row_at<T>(const_cast<Plain*>(base), stride, b, head, 0)) +
           lane % kLanes;
  }
};

// fn(lanes), known to the compiler: from kFewestLanes to a whole warp.
template <class Fn>
void with_lanes(int lanes, Fn fn) {
  switch (lanes) {
    case 8:
      return fn(std::integral_constant<int, 8>{});
    case 16:
      return fn(std::integral_constant<int, 16>{});
    case 32:
      return fn(std::integral_constant<int, 32>{});
  }
}

}  // namespace crossmodal::cuda
