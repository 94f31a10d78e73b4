// dQ of queries whose keys several blocks have shared out: each leaves its sum, in one place, and a
// warp to a row adds them up in one order.
#pragma once

#include "cuda/backward_problem.h"
#include "cuda/launch.h"
#include "cuda/number.h"
#include "cuda/sample.h"

namespace crossmodal::cuda {

// The sum of one share for query i of (b, h), not scaled yet: head_dim numbers.
template <class Acc>
__device__ inline Acc* dq_share(const BackwardProblem& p, int share, int b, int h, int i) {
  const int64_t row = ((share * p.batch + b) * p.num_heads + h) * p.seqlen_q + i;
  return static_cast<Acc*>(p.scratch) + row * p.head_dim;
}

constexpr int kMergeDqWarps = 4;

template <class E>
__global__ void __launch_bounds__(kMergeDqWarps * 32)
    merge_dq_kernel(const __grid_constant__ BackwardProblem p, int shares) {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  const int lane = static_cast<int>(threadIdx.x) % 32, width = static_cast<int>(p.head_dim);
  // So few that they fit an int: more would fill the device without sharing.
  const int rows = static_cast<int>(p.batch * p.num_heads * p.seqlen_q);
  const int seqlen_q = static_cast<int>(p.seqlen_q), heads = static_cast<int>(p.num_heads);
  for (int row = blockIdx.x * kMergeDqWarps + threadIdx.x / 32; row < rows;
       row += gridDim.x * kMergeDqWarps) {
    const int i = row % seqlen_q, pair = row / seqlen_q, b = pair / heads, h = pair % heads;
    const Rows queries = query_rows(p, b);
    if (p.cu_seqlens_q && i >= queries.count) continue;
    const Acc* from = dq_share<Acc>(p, 0, b, h, i);
    T* to = row_at<T>(p.gradient.dq, p.gradient.dq_stride, b, h, queries.first + i);
    for (int d = lane; d < width; d += 32) {
      Acc sum = 0;
      for (int s = 0; s < shares; ++s) sum += from[int64_t{s} * rows * width + d];
      to[d] = rounded<T>(sum * static_cast<Acc>(p.scale));
    }
  }
}

template <class E>
void launch_merge_dq(const BackwardProblem& problem, int shares, void* stream) {
  const int64_t rows = problem.batch * problem.num_heads * problem.seqlen_q;
  launch("merge_dq_kernel", merge_dq_kernel<E>, ceil_div(rows, kMergeDqWarps),
         kMergeDqWarps * kWarp, 0, stream, problem, shares);
}

}  // namespace crossmodal::cuda
