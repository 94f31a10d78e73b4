// Rows whose keys several blocks have shared out become one: a warp to a row.
#include "cuda/attention_launch.h"
#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/row_shares.h"

namespace crossmodal::cuda {

constexpr int kMergeWarps = 4;

template <class E>
__global__ void __launch_bounds__(kMergeWarps * 32)
    merge_rows_kernel(const __grid_constant__ Problem p, bool plain,
                      const __grid_constant__ RowShares shares) {
  using Acc = typename E::Acc;
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  const int64_t step = rows * row_share_size(p);
  for (int64_t row = blockIdx.x * int64_t{kMergeWarps} + threadIdx.x / 32; row < rows;
       row += int64_t{gridDim.x} * kMergeWarps) {
    const int i = static_cast<int>(row % p.seqlen_q);
    const int64_t pair = row / p.seqlen_q;
    const int b = static_cast<int>(pair / p.num_heads), h = static_cast<int>(pair % p.num_heads);
    const Rows queries = query_rows(p, b);
    if (p.cu_seqlens_q && i >= queries.count) continue;
    const MergedRow<Acc> merged(p, static_cast<Acc*>(shares.data) + row * row_share_size(p), step,
                                shares.count, exponent_factor<Acc>(p, plain));
    write_row<typename E::Element>(p, plain, b, h, queries, i, merged);
  }
}

template <class E>
void launch_merge_rows(const AttentionProblem& p, bool plain, const RowShares& shares,
                       void* stream) {
  launch("merge_rows_kernel", merge_rows_kernel<E>,
         ceil_div(p.batch * p.num_heads * p.seqlen_q, kMergeWarps), kMergeWarps * kWarp, 0, stream,
         as_parameter(p), plain, shares);
}

template void launch_merge_rows<MmaEngine<BFloat16>>(const AttentionProblem&, bool,
                                                     const RowShares&, void*);
template void launch_merge_rows<MmaEngine<Float16>>(const AttentionProblem&, bool, const RowShares&,
                                                    void*);
template void launch_merge_rows<FmaEngine<float>>(const AttentionProblem&, bool, const RowShares&,
                                                  void*);
template void launch_merge_rows<FmaEngine<double>>(const AttentionProblem&, bool, const RowShares&,
                                                   void*);

}  // namespace crossmodal::cuda
