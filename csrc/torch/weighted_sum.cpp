
#include "torch/weighted_sum.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/kernels.h"

namespace crossmodal {

using torch::stable::Tensor;

Tensor weighted_sum_fwd(const Tensor& weights, const Tensor& values_in,
                        const OptionalTensor& lengths, const OptionalTensor& mask) {
  const auto kernels = kernels_of(values_in);
  const Tensor values = with_unit_last_stride(values_in);
  const Tensor out = empty_weighted_sum(weights, values);
  const OptionalTensor checked = checked_weighted_sum_lengths(lengths, values);
  const WeightedSumProblem problem = describe_weighted_sum(weights, values, checked, mask, out);
  kernels->weighted_sum_fwd(problem);
  return out;
}

std::tuple<Tensor, Tensor> weighted_sum_bwd(const Tensor& dout_in, const Tensor& weights,
                                            const Tensor& values_in, const OptionalTensor& lengths,
                                            const OptionalTensor& mask, bool wants_dweights,
                                            bool wants_dvalues) {
  const auto kernels = kernels_of(values_in);
  const Tensor values = with_unit_last_stride(values_in), dout = with_unit_last_stride(dout_in);
  const OptionalTensor checked = checked_weighted_sum_lengths(lengths, values);
  const WeightedSumProblem problem = describe_weighted_sum(weights, values, checked, mask, dout);
  const int64_t shape[4] = {problem.batch, problem.num_heads, problem.seqlen_q, problem.head_dim};
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(dout.dim() == 4 && dout.size(d) == shape[d],
                    "weighted_sum: dout must have the output's shape");
  check_same_device(dout, values, "weighted_sum", "dout");
  STD_TORCH_CHECK(dtype_of(dout, "weighted_sum", "dout") == problem.dtype,
                  "weighted_sum: dout must have the output's dtype");

  WeightedSumBackward gradients{};
  gradients.dout = dout.const_data_ptr();
  for (int64_t d = 0; d < 4; ++d) gradients.dout_stride[d] = dout.stride(d);
  const auto gradient = [&](bool wanted, const Tensor& like, int64_t rows, int64_t columns) {
    if (!wanted) return torch::stable::new_empty(like, {0});
    return on_large_pages(
        torch::stable::new_empty(like, {problem.batch, problem.num_heads, rows, columns}));
  };
  const Tensor dweights = gradient(wants_dweights, weights, problem.seqlen_q, problem.seqlen_k);
  const Tensor dvalues = gradient(wants_dvalues, values, problem.seqlen_k, problem.head_dim);
  if (wants_dweights) gradients.dweights = dweights.mutable_data_ptr();
  if (wants_dvalues) gradients.dvalues = dvalues.mutable_data_ptr();
  kernels->weighted_sum_bwd(problem, gradients);
  return {dweights, dvalues};
}

}  // namespace crossmodal
