// Allocates what the backward of an attention problem writes, runs it, and returns the gradients.
#pragma once

#include <vector>

#include "torch/attention_problem.h"

namespace crossmodal {

// The tensors whose gradients are asked for. `wanted` has one flag for query, then for each key,
// each value, each term, and one for the sink; a list without tensors has no flags.
struct GradientInputs {
  const torch::stable::Tensor& query;
  const TensorList& keys;
  const TensorList& values;
  const TensorList& terms;
  const OptionalTensor& sink;
  const std::vector<int64_t>& wanted;
};

// Row maxima, then row sums: what forward left for backward.
torch::stable::Tensor empty_statistics(const torch::stable::Tensor& like, DType dtype, int64_t rows,
                                       bool for_backward);
void bind_statistics(const torch::stable::Tensor& statistics, int64_t rows, AttentionProblem* p);

// One gradient a flag, in its order, an empty tensor where none is wanted. `backward` brings what
// flows in; gradients of rows that belong to no packed sample are 0.
TensorList attention_gradients_cpu(const GradientInputs& inputs, BoundAttention* bound,
                                   AttentionBackward* backward);

}  // namespace crossmodal
