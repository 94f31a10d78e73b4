// The operators weighted_sum_fwd and weighted_sum_bwd on tensors: weights (B, H, Lq, Lk), values
// (B, H, Lk, D), lengths (B,) int32 or int64, mask (B, H, Lq, Lk) bool. Shapes and dtypes were
// checked in Python; what could read out of bounds is checked again.
#pragma once

#include <tuple>

#include "core/weighted_sum_problem.h"
#include "torch/tensors.h"

namespace crossmodal {

torch::stable::Tensor weighted_sum_fwd(const torch::stable::Tensor& weights,
                                       const torch::stable::Tensor& values,
                                       const OptionalTensor& lengths, const OptionalTensor& mask);

// dweights and dvalues, contiguous; an empty tensor where none is wanted.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> weighted_sum_bwd(
    const torch::stable::Tensor& dout, const torch::stable::Tensor& weights,
    const torch::stable::Tensor& values, const OptionalTensor& lengths, const OptionalTensor& mask,
    bool wants_dweights, bool wants_dvalues);

// The problem borrows from its tensors: keep them alive while it
// is used. `lengths` comes from checked_weighted_sum_lengths.
OptionalTensor checked_weighted_sum_lengths(const OptionalTensor& lengths,
                                            const torch::stable::Tensor& values);
torch::stable::Tensor empty_weighted_sum(const torch::stable::Tensor& weights,
                                         const torch::stable::Tensor& values);
WeightedSumProblem describe_weighted_sum(const torch::stable::Tensor& weights,
                                         const torch::stable::Tensor& values,
                                         const OptionalTensor& lengths, const OptionalTensor& mask,
                                         const torch::stable::Tensor& out);

}  // namespace crossmodal
