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
  // So few that they fit an int: more would fill the device without sharing.
  const int rows = static_cast<int>(p.batch * p.num_heads * p.seqlen_q);
  const int seqlen_q = static_cast<int>(p.seqlen_q), heads = static_cast<int>(p.num_heads);
  const int64_t size = row_share_size(p), step = rows * size;
  for (int row = blockIdx.x * kMergeWarps + threadIdx.x / 32; row < rows;
       row += gridDim.x * kMergeWarps) {
    const int i = row % seqlen_q, pair = row / seqlen_q, b = pair / heads, h = pair % heads;
    const Rows queries = query_rows(p, b);
    if (p.cu_seqlens_q && i >= queries.count) continue;
    const MergedRow<Acc> merged(p, static_cast<Acc*>(shares.data) + row * size, step, shares.count,
                                exponent_factor<Acc>(p, plain));
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
