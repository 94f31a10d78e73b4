// Rows whose keys are shared out among warps or blocks: what each share leaves in memory, and how
// the shares of a row become one, always in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/row_results.h"
#include "cuda/scores.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

template <class Acc>
struct SourceMass {
  Acc sum, top;  // of exponentials, relative to the maximum at the time
};

// One share of one row, in numbers of the accumulator's type: top and sum as in OnlineSoftmax, the
// mass of each source where it is wanted, then the weighted sum of values.
template <class Acc>
class RowShare {
 public:
  __device__ RowShare(const Problem& p, Acc* data)
      : data_(data), values_(2 + (p.mass ? 2 * p.num_sources : 0)) {}

  __device__ Acc& top() const { return data_[0]; }
  __device__ Acc& sum() const { return data_[1]; }
  __device__ Acc& value(int column) const { return data_[values_ + column]; }
  __device__ SourceMass<Acc> mass(int source) const {
    return {data_[2 + 2 * source], data_[3 + 2 * source]};
  }
  __device__ void set_mass(int source, const SourceMass<Acc>& mass) const {
    data_[2 + 2 * source] = mass.sum;
    data_[3 + 2 * source] = mass.top;
  }

 private:
  Acc* data_;
  int values_;
};

// Where blocks leave their shares: [count][batch, num_heads, seqlen_q] of them. Count 1: nobody
// does, every block finishes its rows.
struct RowShares {
  void* data;
  int count;

  template <class Acc>
  __device__ RowShare<Acc> at(const Problem& p, int share, int64_t b, int64_t h, int64_t i) const {
    const int64_t row = ((share * p.batch + b) * p.num_heads + h) * p.seqlen_q + i;
    return {p, static_cast<Acc*>(data) + row * row_share_size(p)};
  }
};

// Shares of a row as one, by a warp all of whose lanes take part: lane n knows how share n is to be
// scaled, so that each exponential is taken once.
template <class Acc>
class MergedRow {
 public:
  // `count` shares, 32 at most, `step` numbers apart. factor: see exponent_factor.
  __device__ MergedRow(const Problem& p, Acc* first, int64_t step, int count, Acc factor)
      : p_(p),
        first_(first),
        step_(step),
        count_(count),
        is_there_(static_cast<int>(threadIdx.x) % 32 < count),
        factor_(factor) {
    const RowShare<Acc> own = share(is_there_ ? threadIdx.x % 32 : 0);
    top = largest_of_lanes(is_there_ ? own.top() : minus_infinity<Acc>());
    const Acc own_sum = is_there_ ? own.sum() : Acc(0);
    const Acc own_shrink = is_there_ ? shrink(own.top()) : Acc(0);
    sum = sum_of_lanes(own_sum * own_shrink);
    // Of a share that saw nothing the values may be NaN: those of rows that others see.
    has_values_ = own_sum != 0;
    shrink_ = own_shrink;
  }

  Acc top, sum;

  // Of a source: its sum of exponentials, relative to top.
  __device__ Acc mass(int source) const {
    const SourceMass<Acc> part = share(is_there_ ? threadIdx.x % 32 : 0).mass(source);
    return sum_of_lanes(is_there_ ? part.sum * shrink(part.top) : Acc(0));
  }

  // fn(column, value) for this lane's columns.
  template <class Fn>
  __device__ void for_each_value(Fn fn) const {
    for (int begin = 0; begin < p_.head_dim_v; begin += 32) {
      const int column = begin + static_cast<int>(threadIdx.x) % 32;
      const bool exists = column < p_.head_dim_v;
      Acc total = 0;
      for (int n = 0; n < count_; ++n) {
        const Acc scale = __shfl_sync(0xffffffffu, shrink_, n);
        const bool has_values = __shfl_sync(0xffffffffu, static_cast<int>(has_values_), n);
        if (exists && has_values) total += share(n).value(column) * scale;
      }
      if (exists) fn(column, total);
    }
  }

 private:
  __device__ RowShare<Acc> share(int n) const { return {p_, first_ + n * step_}; }
  // Nothing visible at all: see OnlineSoftmax.
  __device__ Acc shrink(Acc other) const {
    const Acc shift = top == minus_infinity<Acc>() ? Acc(0) : top;
    return exp2_of((other - shift) * factor_);
  }
  __device__ static Acc sum_of_lanes(Acc x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
  }
  __device__ static Acc largest_of_lanes(Acc x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
  }

  const Problem& p_;
  Acc* first_;
  int64_t step_;
  int count_;
  bool is_there_;  // a share for this lane
  bool has_values_;
  Acc factor_, shrink_;
};

// Query i of (b, h) to its place, by a warp.
template <class T, class Acc>
__device__ void write_row(const Problem& p, bool plain, int b, int h, const Rows& queries, int i,
                          const MergedRow<Acc>& row) {
  const int lane = threadIdx.x % 32;
  const bool exists = i < queries.count;
  const bool nothing = !exists || row.sum == 0;  // false for NaN, which has to be seen
  const RowTotal<Acc> total =
      exists ? row_total(p, plain, b, h, row.top, row.sum) : RowTotal<Acc>::none();
  const int64_t at = row_index(p, b, h, queries, i);
  if (lane == 0) write_statistics(p, at, total);
  if (p.mass)
    for (int s = 0; s < p.num_sources; ++s) {
      const Acc mass = row.mass(s);
      if (lane == 0) write_mass(p, at, s, total, nothing ? Acc(0) : mass);
    }
  const Acc factor = total.inverse * (p.dropout_p > 0 ? static_cast<Acc>(p.dropout_kept) : Acc(1));
  T* out = row_at<T>(p.out, p.out_stride, b, h, queries.first + i);
  row.for_each_value(
      [&](int column, Acc value) { out[column] = nothing ? T{} : rounded<T>(value * factor); });
}

}  // namespace crossmodal::cuda
