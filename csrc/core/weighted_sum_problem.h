// One weighted sum, out_i = sum_j weights_ij * values_j, as CPU and CUDA kernels see it: no tensor,
// no torch.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace crossmodal {

// Strides count elements, may be 0 (broadcast), and follow the order of the shape in the comment.
struct WeightedSumProblem {
  const void* weights;  // [batch, num_heads, seqlen_q, seqlen_k] of dtype
  const void* values;   // [batch, num_heads, seqlen_k, head_dim] of dtype
  void* out;            // [batch, num_heads, seqlen_q, head_dim] of dtype
  const void*
      lengths;  // [batch], keys at or beyond are skipped; null: all keys. Clamped to [0, seqlen_k]
  bool lengths_are_int64;  // else int32
  const uint8_t*
      mask;  // [batch, num_heads, seqlen_q, seqlen_k], 0: the key is skipped; null: no mask

  int64_t batch, num_heads, seqlen_q, seqlen_k, head_dim;
  int64_t weights_stride[4], values_stride[4], out_stride[4], mask_stride[4];
  DType dtype;
};

// Backward of the same problem, whose out is not read: dweights_ij = <dout_i, values_j>, dvalues_j
// = sum_i weights_ij dout_i, both 0 where the key is skipped.
struct WeightedSumBackward {
  const void* dout;  // [batch, num_heads, seqlen_q, head_dim] of dtype, last stride 1
  int64_t dout_stride[4];
  void* dweights;  // [batch, num_heads, seqlen_q, seqlen_k] of dtype, contiguous; null: not wanted
  void* dvalues;   // [batch, num_heads, seqlen_k, head_dim] of dtype, contiguous; null: not wanted
};

}  // namespace crossmodal
