// Tensors -> WeightedSumProblem, for every device.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/weighted_sum.h"

namespace crossmodal {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_shape(const Tensor& tensor, const char* name, const int64_t (&shape)[4]) {
  STD_TORCH_CHECK(tensor.dim() == 4, "weighted_sum: ", name, " must have 4 dimensions, got ",
                  tensor.dim());
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(tensor.size(d) == shape[d], "weighted_sum: ", name, " has size ",
                    tensor.size(d), " in dimension ", d, ", expected ", shape[d]);
  }
}

void copy_strides(const Tensor& tensor, int64_t (&strides)[4]) {
  for (int64_t d = 0; d < 4; ++d) strides[d] = tensor.stride(d);
}

}  // namespace

Tensor empty_weighted_sum(const Tensor& weights, const Tensor& values) {
  STD_TORCH_CHECK(weights.dim() == 4 && values.dim() == 4,
                  "weighted_sum: weights and values must have 4 dimensions, got ", weights.dim(),
                  " and ", values.dim());
  return on_large_pages(torch::stable::new_empty(
      values, {values.size(0), values.size(1), weights.size(2), values.size(3)}));
}

OptionalTensor checked_weighted_sum_lengths(const OptionalTensor& lengths, const Tensor& values) {
  if (!lengths.has_value()) return lengths;
  return checked_lengths(*lengths, "weighted_sum", "lengths", values.size(0), values.size(2));
}

WeightedSumProblem describe_weighted_sum(const Tensor& weights, const Tensor& values,
                                         const OptionalTensor& lengths, const OptionalTensor& mask,
                                         const Tensor& out) {
  WeightedSumProblem problem{};
  problem.batch = values.size(0);
  problem.num_heads = values.size(1);
  problem.seqlen_q = weights.size(2);
  problem.seqlen_k = values.size(2);
  problem.head_dim = values.size(3);
  const int64_t weights_shape[4] = {problem.batch, problem.num_heads, problem.seqlen_q,
                                    problem.seqlen_k};
  check_shape(weights, "weights", weights_shape);

  check_same_device(weights, values, "weighted_sum", "weights");
  if (lengths.has_value()) check_same_device(*lengths, values, "weighted_sum", "lengths");
  if (mask.has_value()) check_same_device(*mask, values, "weighted_sum", "mask");
  problem.dtype = dtype_of(values, "weighted_sum", "values");
  STD_TORCH_CHECK(dtype_of(weights, "weighted_sum", "weights") == problem.dtype,
                  "weighted_sum: weights and values must have the same dtype");

  problem.weights = weights.const_data_ptr();
  problem.values = values.const_data_ptr();
  problem.out = out.mutable_data_ptr();
  copy_strides(weights, problem.weights_stride);
  copy_strides(values, problem.values_stride);
  copy_strides(out, problem.out_stride);

  if (lengths.has_value()) {
    problem.lengths = lengths->const_data_ptr();
    problem.lengths_are_int64 = lengths->scalar_type() == ScalarType::Long;
  }
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool, "weighted_sum: mask must be bool");
    check_shape(*mask, "mask", weights_shape);
    problem.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
    copy_strides(*mask, problem.mask_stride);
  }
  return problem;
}

}  // namespace crossmodal
