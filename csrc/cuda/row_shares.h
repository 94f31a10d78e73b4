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

// `count` shares of a row, `step` numbers apart. factor: see exponent_factor.
template <class Acc>
class MergedRow {
 public:
  __device__ MergedRow(const Problem& p, Acc* first, int64_t step, int count, Acc factor)
      : p_(p), first_(first), step_(step), count_(count), factor_(factor) {
    top = minus_infinity<Acc>();
    for (int n = 0; n < count; ++n) top = larger(top, share(n).top());
    sum = 0;
    for (int n = 0; n < count; ++n) sum += share(n).sum() * shrink(share(n).top());
  }

  Acc top, sum;

  __device__ Acc mass(int source) const {
    Acc total = 0;
    for (int n = 0; n < count_; ++n) {
      const SourceMass<Acc> part = share(n).mass(source);
      total += part.sum * shrink(part.top);
    }
    return total;
  }

  __device__ Acc value(int column) const {
    Acc total = 0;
    for (int n = 0; n < count_; ++n) {
      const RowShare<Acc> part = share(n);
      // Of a share that saw nothing the values may be NaN: those of rows that others see.
      if (part.sum() != 0) total += part.value(column) * shrink(part.top());
    }
    return total;
  }

 private:
  __device__ RowShare<Acc> share(int n) const { return {p_, first_ + n * step_}; }
  // Nothing visible at all: see OnlineSoftmax.
  __device__ Acc shrink(Acc other) const {
    const Acc shift = top == minus_infinity<Acc>() ? Acc(0) : top;
    return exp2_of((other - shift) * factor_);
  }

  const Problem& p_;
  Acc* first_;
  int64_t step_;
  int count_;
  Acc factor_;
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
  if (lane == 0)
    write_statistics(p, row_index(p, b, h, queries, i), total, nothing,
                     [&](int source) { return row.mass(source); });
  const Acc factor = total.inverse * (p.dropout_p > 0 ? static_cast<Acc>(p.dropout_kept) : Acc(1));
  T* out = row_at<T>(p.out, p.out_stride, b, h, queries.first + i);
  for (int d = lane; d < p.head_dim_v; d += 32)
    out[d] = nothing ? T{} : rounded<T>(row.value(d) * factor);
}

}  // namespace crossmodal::cuda
