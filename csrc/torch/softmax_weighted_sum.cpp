// softmax(scale * scores) x values: attention without features, whose scores come as a term.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/attention.h"
#include "torch/attention_gradients.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::stable::Tensor;

namespace {

// Query and key of head_dim 0 in the shape of what they stand for.
Tensor without_features(const Tensor& like, int64_t batch, int64_t heads, int64_t rows) {
  return torch::stable::new_empty(like, {batch, heads, rows, 0});
}

struct Operands {
  Tensor query;
  TensorList keys, values, terms;
  std::vector<OptionalTensor> lengths;
  std::vector<int64_t> term_sources;
  OptionalTensor none;

  Operands(const Tensor& scores, const Tensor& values_in, const OptionalTensor& lengths_in,
           const OptionalTensor& mask)
      : query(without_features(scores, 0, 0, 0)), lengths{lengths_in}, term_sources{0} {
    STD_TORCH_CHECK(scores.dim() == 4 && values_in.dim() == 4,
                    "softmax_weighted_sum: scores and values must have 4 dimensions");
    STD_TORCH_CHECK(scores.scalar_type() == values_in.scalar_type(),
                    "softmax_weighted_sum: scores and values must have the same dtype");
    const int64_t batch = values_in.size(0), heads = values_in.size(1);
    // A gradient that is summed over samples or heads would need other statistics.
    STD_TORCH_CHECK(scores.size(0) == batch && scores.size(1) == heads,
                    "softmax_weighted_sum: scores and values must have the same batch and heads");
    query = without_features(scores, batch, heads, scores.size(2));
    keys = {without_features(values_in, batch, heads, values_in.size(2))};
    values = {values_in};
    terms = {scores};
    if (!mask.has_value()) return;
    terms.push_back(*mask);
    term_sources.push_back(0);
  }

  AttentionArguments arguments() const {
    return {query, keys, values, lengths, terms, term_sources, none, none, none, {1.0}};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> softmax_weighted_sum_fwd(const Tensor& scores, const Tensor& values,
                                                    const OptionalTensor& lengths,
                                                    const OptionalTensor& mask, double scale,
                                                    bool for_backward) {
  const Operands x(scores, values, lengths, mask);
  const auto kernels = kernels_of(values);
  BoundAttention bound(x.arguments());
  bound.term(0).factor = scale;
  AttentionProblem& p = bound.problem;
  p.skips_unseen_keys = true;
  const Tensor out = on_large_pages(
      torch::stable::new_empty(values, {p.batch, p.num_heads, p.seqlen_q, p.head_dim_v}));
  p.out = out.mutable_data_ptr();
  row_strides(out, p.out_stride);
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  const Tensor statistics = empty_statistics(values, p.dtype, rows, for_backward);
  if (for_backward) bind_statistics(statistics, rows, &p);
  kernels->attention_fwd(p, values);
  return {out, statistics};
}

std::tuple<Tensor, Tensor> softmax_weighted_sum_bwd(const Tensor& dout_in, const Tensor& scores,
                                                    const Tensor& values,
                                                    const OptionalTensor& lengths,
                                                    const OptionalTensor& mask, const Tensor& out,
                                                    const Tensor& statistics, double scale,
                                                    bool wants_dscores, bool wants_dvalues) {
  const Operands x(scores, values, lengths, mask);
  const auto kernels = kernels_of(values);
  BoundAttention bound(x.arguments());
  bound.term(0).factor = scale;
  AttentionProblem& p = bound.problem;
  p.skips_unseen_keys = true;
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  bind_statistics(statistics, rows, &p);
  const Tensor dout = with_unit_last_stride(dout_in);
  STD_TORCH_CHECK(dout.dim() == 4 && out.dim() == 4 && dout.numel() == rows * p.head_dim_v &&
                      out.numel() == dout.numel() && out.scalar_type() == values.scalar_type() &&
                      dout.scalar_type() == values.scalar_type(),
                  "softmax_weighted_sum: dout must have the shape and dtype of the output");
  p.out = const_cast<void*>(out.const_data_ptr());
  row_strides(out, p.out_stride);
  AttentionBackward g{};
  g.dout = dout.const_data_ptr();
  row_strides(dout, g.dout_stride);
  std::vector<int64_t> wanted = {0, 0, wants_dvalues, wants_dscores};
  if (mask.has_value()) wanted.push_back(0);
  const TensorList gradients = attention_gradients(
      *kernels, {x.query, x.keys, x.values, x.terms, x.none, wanted}, &bound, &g);
  return {gradients[3], gradients[2]};
}

}  // namespace crossmodal
