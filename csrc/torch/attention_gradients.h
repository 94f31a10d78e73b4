// Allocates what the backward of an attention problem writes, runs it, and returns the gradients.
#pragma once

#include <vector>

#include "torch/attention_problem.h"

namespace crossmodal {

class Kernels;

// The tensors whose gradients are asked for. `wanted` has one flag for query, then for each key,
// each value, each term, and one for the sink; a list without tensors has no flags.
struct GradientInputs {
  const torch::stable::Tensor& query;
  const TensorList& keys;
  const TensorList& values;
  const TensorList& terms;
  const OptionalTensor& sink;
  const std::vector<int64_t>& wanted;

  size_t first_term() const { return 1 + keys.size() + values.size(); }
  bool wants_term(size_t t) const { return wanted[first_term() + t] != 0; }
  bool wants_sink() const { return sink.has_value() && wanted.back() != 0; }
  void check() const;  // as many flags as tensors
};

// One for each term and, where there is one, the sink; empty tensors where none is wanted.
struct TermGradients {
  TensorList terms;
  torch::stable::Tensor sink;
};

// Row maxima, then row sums: what forward left for backward.
torch::stable::Tensor empty_statistics(const torch::stable::Tensor& like, DType dtype, int64_t rows,
                                       bool for_backward);
// As of queries that see nothing.
void fill_statistics_of_nothing(torch::stable::Tensor* statistics);
void bind_statistics(const torch::stable::Tensor& statistics, int64_t rows, AttentionProblem* p);

// The gradients of query, keys and values, an empty tensor where none is wanted, bound to `bound`
// and `dq`; those of terms are described there.
TensorList row_gradients(const GradientInputs& inputs, BoundAttention* bound, void** dq,
                         int64_t (&dq_stride)[3]);

// The gradient of a tensor of rows, in its memory order, and where it lies.
torch::stable::Tensor empty_gradient(const torch::stable::Tensor& like, bool zero, void** data,
                                     int64_t (&strides)[3]);

// One gradient a flag, in its order, an empty tensor where none is wanted. `backward` brings what
// flows in; gradients of rows that belong to no packed sample are 0.
TensorList attention_gradients(const Kernels& kernels, const GradientInputs& inputs,
                               BoundAttention* bound, AttentionBackward* backward);

// An empty tensor: no gradient.
torch::stable::Tensor nothing(const torch::stable::Tensor& like);

// Describes the gradient of a term in its own shape. Where it is summed over queries or keys,
// double costs little memory and keeps a long sum as accurate as torch's.
void describe_gradient(const torch::stable::Tensor& like, DType dtype, ScoreTerm* term);

// `sums`, of the term's number of elements, in its shape and dtype.
torch::stable::Tensor as_gradient_of(const torch::stable::Tensor& term,
                                     const torch::stable::Tensor& sums);

}  // namespace crossmodal
