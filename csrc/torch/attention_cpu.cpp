#include "cpu/attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/attention_problem.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void check_kernels(DType dtype) {
  STD_TORCH_CHECK(cpu::has_kernels_for(dtype), "attention: no CPU kernel for this dtype");
}

// The gradient of a tensor of rows, in its memory order; an empty tensor and null where it is not
// wanted.
Tensor empty_gradient(const Tensor& like, bool wanted, void** data, int64_t (&strides)[3]) {
  if (!wanted) return torch::stable::new_empty(like, {0});
  const Tensor gradient = empty_in_order_of(like, like.size(2), like.size(3));
  *data = gradient.mutable_data_ptr();
  row_strides(gradient, strides);
  return gradient;
}

// Points the term at accumulators [partials][size of the term], zero at first.
Tensor zero_accumulators(const Tensor& like, int64_t partials, ScoreTerm* term) {
  const ScalarType type = term->grad_is_double ? ScalarType::Double : ScalarType::Float;
  const Tensor accumulators = torch::stable::new_zeros(like, {partials, like.numel()}, type);
  term->grad = accumulators.mutable_data_ptr();
  return accumulators;
}

// The gradient of a term in its own shape. Where it is summed over queries or keys, double costs
// little memory and keeps a long sum as accurate as torch's.
void describe_gradient(const Tensor& like, DType dtype, ScoreTerm* term) {
  term->grad_size = like.numel();
  int64_t step = 1;
  for (int64_t d = 3; d >= 0; --d) {
    term->grad_stride[d] = like.size(d) == 1 ? 0 : step;
    step *= like.size(d);
  }
  term->grad_is_double =
      dtype == DType::kFloat64 || term->grad_stride[2] == 0 || term->grad_stride[3] == 0;
}

// Row maxima, then row sums.
void bind_statistics(const Tensor& statistics, int64_t rows, AttentionProblem* p) {
  STD_TORCH_CHECK(statistics.numel() == 2 * rows && statistics.is_contiguous() &&
                      statistics.scalar_type() == accumulator_type(p->dtype),
                  "attention: statistics must come from attention_fwd with for_backward");
  char* data = static_cast<char*>(const_cast<void*>(statistics.const_data_ptr()));
  p->row_top = data;
  p->row_sum = data + rows * (p->dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

const void* optional_data(const OptionalTensor& tensor, TensorList* kept, int64_t numel) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == numel, "attention: a gradient has ", tensor->numel(),
                  " elements, expected ", numel);
  kept->push_back(torch::stable::contiguous(*tensor));
  return kept->back().const_data_ptr();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_fwd_cpu(
    const Tensor& query, const TensorList& keys, const TensorList& values,
    const std::vector<OptionalTensor>& lengths, const TensorList& terms,
    const std::vector<int64_t>& term_sources, bool is_causal, double scale, bool return_mass,
    bool for_backward) {
  BoundAttention bound({query, keys, values, lengths, terms, term_sources, is_causal, scale});
  AttentionProblem& p = bound.problem;
  check_kernels(p.dtype);
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
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;
  const Tensor statistics =
      torch::stable::new_empty(query, {for_backward ? 2 : 0, rows}, accumulator);
  if (for_backward) bind_statistics(statistics, rows, &p);
  cpu::attention_fwd(p, torch_threads());
  return {out, lse, mass, statistics};
}

TensorList attention_bwd_cpu(const Tensor& dout_in, const OptionalTensor& dlse,
                             const OptionalTensor& dmass, const Tensor& query,
                             const TensorList& keys, const TensorList& values,
                             const std::vector<OptionalTensor>& lengths, const TensorList& terms,
                             const std::vector<int64_t>& term_sources, const Tensor& out_in,
                             const Tensor& statistics, const Tensor& mass_in, bool is_causal,
                             double scale, const std::vector<int64_t>& wanted) {
  BoundAttention bound({query, keys, values, lengths, terms, term_sources, is_causal, scale});
  AttentionProblem& p = bound.problem;
  check_kernels(p.dtype);
  const size_t count = keys.size();
  STD_TORCH_CHECK(wanted.size() == 1 + 2 * count + terms.size(),
                  "attention: wanted must have one flag for query and each key, value and term");
  const int64_t rows = p.batch * p.num_heads * p.seqlen_q;

  TensorList kept;
  const Tensor dout = with_unit_last_stride(dout_in), out = with_unit_last_stride(out_in);
  STD_TORCH_CHECK(dout.numel() == rows * p.head_dim_v && out.numel() == rows * p.head_dim_v &&
                      dout.dim() == 4 && out.dim() == 4 &&
                      dtype_of(dout, "attention", "dout") == p.dtype &&
                      dtype_of(out, "attention", "out") == p.dtype,
                  "attention: dout and out must have the shape and dtype of the output");
  p.out = const_cast<void*>(out.const_data_ptr());
  row_strides(out, p.out_stride);
  bind_statistics(statistics, rows, &p);
  AttentionBackward g{};
  g.dout = dout.const_data_ptr();
  row_strides(dout, g.dout_stride);
  g.dlse = optional_data(dlse, &kept, rows);
  g.dmass = optional_data(dmass, &kept, rows * p.num_sources);
  if (g.dmass) p.mass = const_cast<void*>(optional_data(mass_in, &kept, rows * p.num_sources));

  TensorList gradients;
  gradients.push_back(empty_gradient(query, wanted[0], &g.dq, g.dq_stride));
  for (size_t s = 0; s < count; ++s)
    gradients.push_back(
        empty_gradient(keys[s], wanted[1 + s], &bound.sources[s].dk, bound.sources[s].dk_stride));
  for (size_t s = 0; s < count; ++s)
    gradients.push_back(empty_gradient(values[s], wanted[1 + count + s], &bound.sources[s].dv,
                                       bound.sources[s].dv_stride));

  const int64_t* wanted_terms = wanted.data() + 1 + 2 * count;
  for (size_t t = 0; t < terms.size(); ++t) {
    if (!wanted_terms[t]) continue;
    describe_gradient(terms[t], p.dtype, &bound.term(t));
    bound.term(t).grad = &g;  // anything but null: the split depends on which terms want a gradient
  }
  const cpu::Threads threads = torch_threads();
  const cpu::BackwardSplit split = cpu::split_backward(p, threads.count);
  TensorList accumulators;
  for (size_t t = 0; t < terms.size(); ++t)
    accumulators.push_back(wanted_terms[t]
                               ? zero_accumulators(terms[t], split.partials, &bound.term(t))
                               : torch::stable::new_empty(terms[t], {0}));
  g.num_partials = split.partials;
  cpu::attention_bwd(p, g, split, threads);

  for (size_t t = 0; t < terms.size(); ++t) {
    if (!wanted_terms[t]) {
      gradients.push_back(accumulators[t]);
      continue;
    }
    Tensor first = torch::stable::select(accumulators[t], 0, 0);
    first = torch::stable::view(
        first, {terms[t].size(0), terms[t].size(1), terms[t].size(2), terms[t].size(3)});
    // A copy of one accumulator, unless it is the only one and has the right dtype already.
    const Tensor gradient = torch::stable::new_empty(
        terms[t], {terms[t].size(0), terms[t].size(1), terms[t].size(2), terms[t].size(3)});
    Tensor target = gradient;
    gradients.push_back(torch::stable::copy_(target, first));
  }
  return gradients;
}

std::tuple<Tensor, Tensor> associate_cpu(const Tensor& query, const TensorList& keys,
                                         const std::vector<OptionalTensor>& lengths,
                                         const TensorList& terms,
                                         const std::vector<int64_t>& term_sources, double scale,
                                         int64_t output, int64_t topk) {
  BoundAttention bound({query, keys, keys, lengths, terms, term_sources, false, scale});
  const AttentionProblem& p = bound.problem;
  check_kernels(p.dtype);
  STD_TORCH_CHECK(output >= 0 && output <= 2, "associate: output must be 0, 1 or 2, got ", output);
  STD_TORCH_CHECK(topk >= 0, "associate: topk must not be negative, got ", topk);
  const ScalarType accumulator = accumulator_type(p.dtype);
  AssociateProblem request{};
  request.output = static_cast<AssociateOutput>(output);
  Tensor weights = torch::stable::new_empty(query, {0}, accumulator);
  Tensor indices = torch::stable::new_empty(query, {0}, ScalarType::Long);
  switch (request.output) {
    case AssociateOutput::kWeights:
      weights = torch::stable::new_empty(query, {p.batch, p.num_heads, p.seqlen_q, p.total_keys},
                                         accumulator);
      break;
    case AssociateOutput::kHeadMean:
      weights = torch::stable::new_zeros(query, {p.batch, p.seqlen_q, p.total_keys}, accumulator);
      break;
    case AssociateOutput::kTopK:
      request.topk = topk;
      weights =
          torch::stable::new_empty(query, {p.batch, p.num_heads, p.seqlen_q, topk}, accumulator);
      indices = torch::stable::new_empty(query, {p.batch, p.num_heads, p.seqlen_q, topk},
                                         ScalarType::Long);
      request.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
      break;
  }
  request.weights = weights.mutable_data_ptr();
  cpu::associate(p, request, torch_threads());
  return {weights, indices};
}

}  // namespace crossmodal
