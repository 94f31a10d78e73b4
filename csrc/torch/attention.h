// The operators attention_fwd, attention_bwd and associate on tensors. Python has checked shapes,
// dtypes and values; what could read out of bounds is checked again here.
#pragma once

#include <tuple>
#include <vector>

#include "torch/tensors.h"

namespace crossmodal {

using TensorList = std::vector<torch::stable::Tensor>;

// query (B, H, Lq, D); per source key (B, H, Lk, D), value (B, H, Lk, Dv), lengths (B,) or none.
// terms: masks and biases as 4-D tensors whose dimensions are 1 or those of (B, H, Lq, Lk);
// term_sources[t] is the source of terms[t]. Returns out (B, H, Lq, Dv), lse (B, H, Lq), mass
// (B, H, Lq, sources) (empty unless wanted) and statistics (2, B * H * Lq) (empty unless a backward
// follows): the largest score of each row, then the sums of exponentials relative to it.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
attention_fwd_cpu(const torch::stable::Tensor& query, const TensorList& keys,
                  const TensorList& values, const std::vector<OptionalTensor>& lengths,
                  const TensorList& terms, const std::vector<int64_t>& term_sources, bool is_causal,
                  double scale, bool return_mass, bool for_backward);

// wanted: one flag for query, then for each key, each value, each term. Returns as many gradients
// in that order, an empty tensor where none was wanted.
TensorList attention_bwd_cpu(const torch::stable::Tensor& dout, const OptionalTensor& dlse,
                             const OptionalTensor& dmass, const torch::stable::Tensor& query,
                             const TensorList& keys, const TensorList& values,
                             const std::vector<OptionalTensor>& lengths, const TensorList& terms,
                             const std::vector<int64_t>& term_sources,
                             const torch::stable::Tensor& out,
                             const torch::stable::Tensor& statistics,
                             const torch::stable::Tensor& mass, bool is_causal, double scale,
                             const std::vector<int64_t>& wanted);

// output: 0 all weights (B, H, Lq, keys), 1 their mean over heads (B, Lq, keys), 2 the topk
// strongest (B, H, Lq, topk) with their indices. The second result is empty but for 2.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> associate_cpu(
    const torch::stable::Tensor& query, const TensorList& keys,
    const std::vector<OptionalTensor>& lengths, const TensorList& terms,
    const std::vector<int64_t>& term_sources, double scale, int64_t output, int64_t topk);

}  // namespace crossmodal
