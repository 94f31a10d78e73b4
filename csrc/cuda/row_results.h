// What a query leaves behind beside its output, and the rows of packed tensors that belong to
// nobody.
#pragma once

#include <cuda_runtime.h>

#include "cuda/number.h"
#include "cuda/row_total.h"
#include "cuda/sample.h"

namespace crossmodal::cuda {

// lse and statistics of the query at `at`, see row_index.
template <class Acc>
__device__ __forceinline__ void write_statistics(const Problem& p, int64_t at,
                                                 const RowTotal<Acc>& total) {
  if (p.lse) static_cast<Acc*>(p.lse)[at] = total.lse;
  if (!p.row_top) return;
  static_cast<Acc*>(p.row_top)[at] = total.top;
  static_cast<Acc*>(p.row_sum)[at] = total.sum;
}

// `sum`: of the source's exponentials, relative to the largest score among the query's keys.
template <class Acc>
__device__ __forceinline__ void write_mass(const Problem& p, int64_t at, int source,
                                           const RowTotal<Acc>& total, Acc sum) {
  static_cast<Acc*>(p.mass)[at * p.num_sources + source] = sum == 0 ? Acc(0) : sum * total.inverse;
}

// Rows [begin, end) of a packed tensor that belong to no sample see nothing.
template <class T, class Acc>
__device__ void write_unowned_rows(const Problem& p, int64_t h, const Gap& gap) {
  for (int row = gap.begin; row < gap.end; ++row) {
    T* out = row_at<T>(p.out, p.out_stride, 0, h, row);
    for (int64_t d = threadIdx.x; d < p.head_dim_v; d += blockDim.x) out[d] = T{};
    if (threadIdx.x != 0) continue;
    const int64_t at = h * p.total_q + row;
    if (p.lse) static_cast<Acc*>(p.lse)[at] = minus_infinity<Acc>();
    if (p.row_top) {
      static_cast<Acc*>(p.row_top)[at] = minus_infinity<Acc>();
      static_cast<Acc*>(p.row_sum)[at] = 0;
    }
  }
}

// Those beside sample b, by a whole block.
template <class T, class Acc>
__device__ void write_rows_beside(const Problem& p, int64_t b, int64_t h) {
  if (!p.cu_seqlens_q) return;
  const Rows rows = query_rows(p, b);
  write_unowned_rows<T, Acc>(p, h, gap_before(rows, b));
  write_unowned_rows<T, Acc>(p, h, gap_after(p.cu_seqlens_q, rows, b, p.batch, p.total_q));
}

}  // namespace crossmodal::cuda
