// Products for so few queries that packing keys would cost more than it saves: every row of K and V
// is read once, where it stands. Pooling with a learned query is the case that matters; it is bound
// by memory, not by arithmetic.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/engine.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Up to here a query costs less than its share of the packing: packing moves each element of K
// twice, a query reads it once.
constexpr int64_t kFewQueries = 4;

inline void store_sums(VecF sums[VecF::kLanes], float* out) {
  // Transposed, a vertical addition replaces one horizontal reduction per key.
  transpose(sums);
#pragma GCC unroll 8
  for (int half = VecF::kLanes / 2; half > 0; half /= 2)
    for (int x = 0; x < half; ++x) sums[x] = sums[x] + sums[x + half];
  sums[0].store(out);
}

inline void store_sums(VecD sums[VecD::kLanes], double* out) {
  for (int x = 0; x < VecD::kLanes; ++x) out[x] = reduce_add(sums[x]);
}

// Into the second-level cache, which has several times as many misses under way as the first: that
// is what limits a single core's reads from DRAM.
inline void bring(const void* line) { __builtin_prefetch(line, 0, 2); }

// How many rows before its use a row is brought into the cache.
constexpr int64_t kRowsAhead = 48;

// The row that is due then, of rows[0, n). Beyond the last one the next head's begin, where heads
// lie one after the other.
template <class T>
const T* row_ahead(const T* const* rows, int64_t j, int64_t n, int64_t width) {
  return j + kRowsAhead < n ? rows[j + kRowsAhead] : rows[j] + kRowsAhead * width;
}

// s[j] = <q, rows[j]> for j < n; lanes up to a whole vector hold anything. With kBring the rows
// ahead come into the cache, and `partners`, rows that will be read next.
template <class V, bool kBring = false, class T>
void dot_with_rows(const T* q, const T* const* rows, int64_t n, int64_t width,
                   typename V::Scalar* s, const T* const* partners = nullptr) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t whole = width / V::kLanes * V::kLanes;
  const int rest = static_cast<int>(width - whole);
  for (int64_t j = 0; j < n; j += V::kLanes) {
    V sums[V::kLanes];
    for (int x = 0; x < V::kLanes; ++x) {
      const int64_t here = min_of(j + x, n - 1);
      const T* row = rows[here];
      if constexpr (kBring) {
        const T* ahead = row_ahead(rows, here, n, width);
        for (int64_t d = 0; d < width; d += kLine) {
          bring(ahead + d);
          bring(partners[here] + d);
        }
      }
      V sum = V::zero();
      for (int64_t d = 0; d < whole; d += V::kLanes)
        sum = fmadd(V::load(q + d), V::load(row + d), sum);
      if (rest) sum = fmadd(V::load_first(q + whole, rest), V::load_first(row + whole, rest), sum);
      sums[x] = sum;
    }
    store_sums(sums, s + j);
  }
}

// Rows whose products are summed in one chain. Short, as equal products round in one direction, and
// the memory hides what it costs.
constexpr int64_t kWeightedChain = min_of(16, kMaxChain);

// out[d] += sum_j p[j] * rows[j][d] for at most kWeightedChain rows; out holds whole vectors. With
// kBring the rows ahead come into the cache, of `left` rows in all.
template <class V, bool kBring, class T>
void add_weighted_chain(const typename V::Scalar* p, const T* const* rows, int64_t n, int64_t left,
                        int64_t width, typename V::Scalar* out) {
  // Vectors of a row summed at once: enough chains to hide the latency of an addition.
  constexpr int kGroup = 4;
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t d = 0;
  for (; d + kGroup * V::kLanes <= width; d += kGroup * V::kLanes) {
    V sum[kGroup];
    for (int v = 0; v < kGroup; ++v) sum[v] = V::zero();
    for (int64_t j = 0; j < n; ++j) {
      if constexpr (kBring) {
        const T* ahead = row_ahead(rows, j, left, width) + d;
        for (int64_t x = 0; x < kGroup * V::kLanes; x += kLine) bring(ahead + x);
      }
      const V weight = V::set1(p[j]);
      for (int v = 0; v < kGroup; ++v)
        sum[v] = fmadd(weight, V::load(rows[j] + d + v * V::kLanes), sum[v]);
    }
    for (int v = 0; v < kGroup; ++v) {
      typename V::Scalar* o = out + d + v * V::kLanes;
      (V::load(o) + sum[v]).store(o);
    }
  }
  for (; d < width; d += V::kLanes) {
    const int filled = static_cast<int>(min_of(V::kLanes, width - d));
    V sum = V::zero();
    for (int64_t j = 0; j < n; ++j)
      sum = fmadd(V::set1(p[j]), V::load_first(rows[j] + d, filled), sum);
    (V::load(out + d) + sum).store(out + d);
  }
}

// The same for any number of rows.
template <class V, bool kBring = false, class T>
void add_weighted_rows(const typename V::Scalar* p, const T* const* rows, int64_t n, int64_t width,
                       typename V::Scalar* out) {
  for (int64_t j = 0; j < n; j += kWeightedChain)
    add_weighted_chain<V, kBring>(p + j, rows + j, min_of(kWeightedChain, n - j), n - j, width,
                                  out);
}

// to[d] = sum_i weights[i * ld] * rows[i][d] over at most kFewQueries rows.
template <class V, class T>
void write_weighted_sum(const typename V::Scalar* weights, int64_t ld, const T* const* rows,
                        int64_t n, int64_t width, T* to) {
  int64_t d = 0;
  for (; d + V::kLanes <= width; d += V::kLanes) {
    V sum = V::zero();
    for (int64_t i = 0; i < n; ++i)
      sum = fmadd(V::set1(weights[i * ld]), V::load(rows[i] + d), sum);
    sum.store(to + d);
  }
  if (d == width) return;
  const int rest = static_cast<int>(width - d);
  V sum = V::zero();
  for (int64_t i = 0; i < n; ++i)
    sum = fmadd(V::set1(weights[i * ld]), V::load_first(rows[i] + d, rest), sum);
  sum.store_first(to + d, rest);
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
