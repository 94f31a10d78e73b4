
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

#include "torch/attention.h"
#include "torch/attention_gradients.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

const void* optional_data(const OptionalTensor& tensor, TensorList* kept, int64_t numel) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == numel, "attention: a gradient has ", tensor->numel(),
                  " elements, expected ", numel);
  kept->push_back(torch::stable::contiguous(*tensor));
  return kept->back().const_data_ptr();
}

// dout and out, of which rank and size are those of the output. `kept` holds copies.
void bind_outputs(const Tensor& dout_in, const Tensor& out_in, int64_t rank, int64_t rows,
                  TensorList* kept, AttentionProblem* p, AttentionBackward* g) {
  const Tensor dout = with_unit_last_stride(dout_in), out = with_unit_last_stride(out_in);
  for (const Tensor& t : {dout, out})
    STD_TORCH_CHECK(t.dim() == rank && t.numel() == rows * p->head_dim_v &&
                        dtype_of(t, "attention", "dout") == p->dtype,
                    "attention: dout and out must have the shape and dtype of the output");
  kept->push_back(dout);
  kept->push_back(out);
  p->out = const_cast<void*>(out.const_data_ptr());
  row_strides(out, p->out_stride);
  g->dout = dout.const_data_ptr();
  row_strides(dout, g->dout_stride);
}

std::vector<int64_t> plain_window(bool is_causal) { return {-1, is_causal ? 0 : -1}; }

// What backward needs goes to `statistics`, if that is asked for.
Tensor plain_forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                     bool is_causal, bool allow_tf32, OptionalTensor* statistics) {
  const OptionalTensor none;
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        {key},
                        {value},
                        {none},
                        {},
                        {},
                        none,
                        none,
                        none,
                        {scale, 0, plain_window(is_causal), false, 0, allow_tf32}});
  AttentionProblem& p = bound.problem;
  const Tensor out = empty_in_order_of(query, p.seqlen_q, p.head_dim_v);
  p.out = out.mutable_data_ptr();
  row_strides(out, p.out_stride);
  if (statistics) {
    const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
    *statistics = empty_statistics(query, p.dtype, rows, true);
    bind_statistics(**statistics, rows, &p);
  }
  kernels->attention_fwd(p, query);
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_fwd(
    const Tensor& query, const TensorList& keys, const TensorList& values,
    const std::vector<OptionalTensor>& key_lengths, const TensorList& terms,
    const std::vector<int64_t>& term_sources, const OptionalTensor& query_lengths,
    const OptionalTensor& sink, const OptionalTensor& dropout_seed, double scale, double softcap,
    double dropout_p, const std::vector<int64_t>& window, bool lower_right, bool allow_tf32,
    bool return_mass, bool for_backward) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        keys,
                        values,
                        key_lengths,
                        terms,
                        term_sources,
                        query_lengths,
                        sink,
                        dropout_seed,
                        {scale, softcap, window, lower_right, dropout_p, allow_tf32}});
  AttentionProblem& p = bound.problem;
  const ScalarType accumulator = accumulator_type(p.dtype);
  const Tensor out = empty_in_order_of(query, p.seqlen_q, p.head_dim_v);
  const Tensor lse =
      torch::stable::new_empty(query, {p.batch, p.num_heads, p.seqlen_q}, accumulator);
  const Tensor mass =
      return_mass ? torch::stable::new_empty(
                        query, {p.batch, p.num_heads, p.seqlen_q, p.num_sources}, accumulator)
                  : torch::stable::new_empty(query, {0}, accumulator);
  p.out = out.mutable_data_ptr();
  row_strides(out, p.out_stride);
  p.lse = lse.mutable_data_ptr();
  p.mass = return_mass ? mass.mutable_data_ptr() : nullptr;
  const Tensor statistics = empty_statistics(query, p.dtype, lse.numel(), for_backward);
  if (for_backward) bind_statistics(statistics, lse.numel(), &p);
  kernels->attention_fwd(p, query);
  return {out, lse, mass, statistics};
}

TensorList attention_bwd(const Tensor& dout, const OptionalTensor& dlse,
                         const OptionalTensor& dmass, const Tensor& query, const TensorList& keys,
                         const TensorList& values, const std::vector<OptionalTensor>& key_lengths,
                         const TensorList& terms, const std::vector<int64_t>& term_sources,
                         const OptionalTensor& query_lengths, const OptionalTensor& sink,
                         const OptionalTensor& dropout_seed, const Tensor& out,
                         const Tensor& statistics, const Tensor& mass, double scale, double softcap,
                         double dropout_p, const std::vector<int64_t>& window, bool lower_right,
                         bool allow_tf32, const std::vector<int64_t>& wanted) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        keys,
                        values,
                        key_lengths,
                        terms,
                        term_sources,
                        query_lengths,
                        sink,
                        dropout_seed,
                        {scale, softcap, window, lower_right, dropout_p, allow_tf32}});
  AttentionProblem& p = bound.problem;
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  TensorList kept;
  AttentionBackward g{};
  bind_outputs(dout, out, 4, rows, &kept, &p, &g);
  bind_statistics(statistics, rows, &p);
  g.dlse = optional_data(dlse, &kept, rows);
  g.dmass = optional_data(dmass, &kept, rows * p.num_sources);
  if (g.dmass) p.mass = const_cast<void*>(optional_data(mass, &kept, rows * p.num_sources));
  return attention_gradients(*kernels, {query, keys, values, terms, sink, wanted}, &bound, &g);
}

Tensor attention_plain(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                       bool is_causal, bool allow_tf32) {
  return plain_forward(query, key, value, scale, is_causal, allow_tf32, nullptr);
}

std::tuple<Tensor, Tensor> attention_plain_fwd(const Tensor& query, const Tensor& key,
                                               const Tensor& value, double scale, bool is_causal,
                                               bool allow_tf32) {
  OptionalTensor statistics;
  const Tensor out = plain_forward(query, key, value, scale, is_causal, allow_tf32, &statistics);
  return {out, *statistics};
}

std::tuple<Tensor, Tensor, Tensor> attention_plain_bwd(const Tensor& dout, const Tensor& query,
                                                       const Tensor& key, const Tensor& value,
                                                       const Tensor& out, const Tensor& statistics,
                                                       double scale, bool is_causal,
                                                       bool allow_tf32, bool wants_dquery,
                                                       bool wants_dkey, bool wants_dvalue) {
  const OptionalTensor none;
  const TensorList gradients =
      attention_bwd(dout, none, none, query, {key}, {value}, {none}, {}, {}, none, none, none, out,
                    statistics, out, scale, 0, 0, plain_window(is_causal), false, allow_tf32,
                    {wants_dquery, wants_dkey, wants_dvalue});
  return {gradients[0], gradients[1], gradients[2]};
}

std::tuple<Tensor, Tensor, Tensor> attention_varlen_fwd(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
    const OptionalTensor& sink, const OptionalTensor& dropout_seed, double scale, double softcap,
    double dropout_p, const std::vector<int64_t>& window, bool lower_right, bool allow_tf32,
    bool for_backward) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        key,
                        value,
                        cu_seqlens_q,
                        cu_seqlens_k,
                        max_seqlen_q,
                        max_seqlen_k,
                        sink,
                        dropout_seed,
                        {scale, softcap, window, lower_right, dropout_p, allow_tf32},
                        kernels->read_on_host()});
  AttentionProblem& p = bound.problem;
  Tensor out =
      on_large_pages(torch::stable::new_empty(query, {p.total_q, p.num_heads, p.head_dim_v}));
  Tensor lse = torch::stable::new_empty(query, {p.num_heads, p.total_q}, accumulator_type(p.dtype));
  Tensor statistics = empty_statistics(query, p.dtype, lse.numel(), for_backward);
  if (bound.leaves_out_queries()) {
    torch::stable::zero_(out);
    torch::stable::fill_(lse, -INFINITY);
    if (for_backward) fill_statistics_of_nothing(&statistics);
  }
  p.out = out.mutable_data_ptr();
  row_strides(out, p.out_stride);
  p.lse = lse.mutable_data_ptr();
  if (for_backward) bind_statistics(statistics, lse.numel(), &p);
  kernels->attention_fwd(p, query);
  return {out, lse, statistics};
}

TensorList attention_varlen_bwd(const Tensor& dout, const OptionalTensor& dlse, const Tensor& query,
                                const Tensor& key, const Tensor& value, const Tensor& cu_seqlens_q,
                                const Tensor& cu_seqlens_k, int64_t max_seqlen_q,
                                int64_t max_seqlen_k, const OptionalTensor& sink,
                                const OptionalTensor& dropout_seed, const Tensor& out,
                                const Tensor& statistics, double scale, double softcap,
                                double dropout_p, const std::vector<int64_t>& window,
                                bool lower_right, bool allow_tf32,
                                const std::vector<int64_t>& wanted) {
  const auto kernels = kernels_of(query);
  BoundAttention bound({query,
                        key,
                        value,
                        cu_seqlens_q,
                        cu_seqlens_k,
                        max_seqlen_q,
                        max_seqlen_k,
                        sink,
                        dropout_seed,
                        {scale, softcap, window, lower_right, dropout_p, allow_tf32},
                        kernels->read_on_host()});
  AttentionProblem& p = bound.problem;
  const int64_t rows = p.num_heads * p.total_q;
  TensorList kept;
  AttentionBackward g{};
  bind_outputs(dout, out, 3, rows, &kept, &p, &g);
  bind_statistics(statistics, rows, &p);
  g.dlse = optional_data(dlse, &kept, rows);
  return attention_gradients(*kernels, {query, {key}, {value}, {}, sink, wanted}, &bound, &g);
}

}  // namespace crossmodal
