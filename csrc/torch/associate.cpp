#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/attention.h"
#include "torch/attention_gradients.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

AssociateOutput output_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number <= 4, "associate: output must be 0 to 4, got ", number);
  return static_cast<AssociateOutput>(number);
}

std::vector<int64_t> shape_of(const AttentionProblem& p, AssociateOutput output, int64_t topk) {
  switch (output) {
    case AssociateOutput::kWeights:
      return {p.batch, p.num_heads, p.seqlen_q, p.total_keys};
    case AssociateOutput::kHeadMean:
      return {p.batch, p.seqlen_q, p.total_keys};
    case AssociateOutput::kTopK:
      return {p.batch, p.num_heads, p.seqlen_q, topk};
    case AssociateOutput::kKeyTotal:
      return {p.batch, p.num_heads, p.total_keys};
    default:
      return {p.batch, p.num_heads, p.seqlen_q};
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> associate_fwd(
    const Tensor& query, const TensorList& keys, const std::vector<OptionalTensor>& key_lengths,
    const TensorList& terms, const std::vector<int64_t>& term_sources,
    const OptionalTensor& query_lengths, const OptionalTensor& sink, double scale, double softcap,
    int64_t output, int64_t topk, bool for_backward) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        keys,
                        keys,
                        key_lengths,
                        terms,
                        term_sources,
                        query_lengths,
                        sink,
                        std::nullopt,
                        {scale, softcap}});
  AttentionProblem& p = bound.problem;
  p.head_dim_v = 0;  // values take no part
  STD_TORCH_CHECK(topk >= 0, "associate: topk must not be negative, got ", topk);
  const ScalarType accumulator = accumulator_type(p.dtype);
  AssociateProblem request{};
  request.output = output_of(output);
  Tensor weights = on_large_pages(
      torch::stable::new_empty(query, shape_of(p, request.output, topk), accumulator));
  Tensor indices = torch::stable::new_empty(query, {0}, ScalarType::Long);
  if (request.output == AssociateOutput::kTopK) {
    request.topk = topk;
    indices = torch::stable::new_empty(query, shape_of(p, request.output, topk), ScalarType::Long);
    request.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  }
  // Sums over no heads or no queries.
  if (p.num_heads == 0 || p.seqlen_q == 0) torch::stable::zero_(weights);
  request.weights = weights.mutable_data_ptr();
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  const bool writes = for_backward || kernels->associate_needs_statistics();
  const Tensor statistics = empty_statistics(query, p.dtype, rows, writes);
  if (writes) bind_statistics(statistics, rows, &p);
  kernels->associate(p, request, weights);
  return {weights, indices,
          for_backward ? statistics : empty_statistics(query, p.dtype, rows, false)};
}

TensorList associate_bwd(const Tensor& dweights_in, const Tensor& query, const TensorList& keys,
                         const std::vector<OptionalTensor>& key_lengths, const TensorList& terms,
                         const std::vector<int64_t>& term_sources,
                         const OptionalTensor& query_lengths, const OptionalTensor& sink,
                         const Tensor& indices_in, const Tensor& statistics, double scale,
                         double softcap, int64_t output, const std::vector<int64_t>& wanted) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        keys,
                        keys,
                        key_lengths,
                        terms,
                        term_sources,
                        query_lengths,
                        sink,
                        std::nullopt,
                        {scale, softcap}});
  AttentionProblem& p = bound.problem;
  p.head_dim_v = 0;  // values take no part
  bind_statistics(statistics, p.batch * p.num_heads * p.seqlen_q, &p);
  const Tensor dweights = torch::stable::contiguous(dweights_in),
               indices = torch::stable::contiguous(indices_in);
  AssociateGradient gradient{};
  gradient.output = output_of(output);
  if (gradient.output == AssociateOutput::kTopK) gradient.topk = dweights.size(dweights.dim() - 1);
  int64_t numel = 1;
  for (const int64_t size : shape_of(p, gradient.output, gradient.topk)) numel *= size;
  STD_TORCH_CHECK(dweights.numel() == numel &&
                      dweights.scalar_type() == accumulator_type(p.dtype) &&
                      (gradient.output != AssociateOutput::kTopK ||
                       (indices.numel() == numel && indices.scalar_type() == ScalarType::Long)),
                  "associate: dweights and indices must be as the outputs");
  gradient.dweights = dweights.const_data_ptr();
  gradient.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  AttentionBackward g{};
  g.associate = &gradient;
  return attention_gradients(*kernels, {query, keys, {}, terms, sink, wanted}, &bound, &g);
}

}  // namespace crossmodal
