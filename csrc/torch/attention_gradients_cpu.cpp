#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/attention.h"
#include "torch/attention_gradients.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

// The gradient of a tensor of rows, in its memory order.
Tensor empty_gradient(const Tensor& like, bool zero, void** data, int64_t (&strides)[3]) {
  Tensor gradient =
      like.dim() == 4 ? empty_in_order_of(like, like.size(2), like.size(3))
                      : torch::stable::new_empty(like, {like.size(0), like.size(1), like.size(2)});
  if (zero) torch::stable::zero_(gradient);
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

// A copy of the first accumulator in the term's dtype.
Tensor term_gradient(const Tensor& like, const Tensor& accumulators) {
  const std::vector<int64_t> shape = {like.size(0), like.size(1), like.size(2), like.size(3)};
  const Tensor first = torch::stable::view(torch::stable::select(accumulators, 0, 0), shape);
  Tensor gradient = torch::stable::new_empty(like, shape);
  return torch::stable::copy_(gradient, first);
}

// Shares (batch, num_heads) in double -> the gradient of a sink of 1 or batch rows.
Tensor sink_gradient(const Tensor& sink, const Tensor& shares) {
  const int64_t batch = shares.size(0), heads = shares.size(1), rows = sink.size(0);
  Tensor total = torch::stable::new_zeros(shares, {rows, heads});
  const double* share = static_cast<const double*>(shares.const_data_ptr());
  double* sum = static_cast<double*>(total.mutable_data_ptr());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      sum[(rows == 1 ? 0 : b * heads) + h] += share[b * heads + h];
  Tensor gradient = torch::stable::new_empty(sink, {rows, heads});
  return torch::stable::copy_(gradient, total);
}

}  // namespace

Tensor empty_statistics(const Tensor& like, DType dtype, int64_t rows, bool for_backward) {
  return torch::stable::new_empty(like, {for_backward ? 2 : 0, rows}, accumulator_type(dtype));
}

void bind_statistics(const Tensor& statistics, int64_t rows, AttentionProblem* p) {
  STD_TORCH_CHECK(statistics.numel() == 2 * rows && statistics.is_contiguous() &&
                      statistics.scalar_type() == accumulator_type(p->dtype),
                  "attention: statistics must come from forward with for_backward");
  char* data = static_cast<char*>(const_cast<void*>(statistics.const_data_ptr()));
  p->row_top = data;
  p->row_sum = data + rows * (p->dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

TensorList attention_gradients_cpu(const GradientInputs& in, BoundAttention* bound,
                                   AttentionBackward* g) {
  AttentionProblem& p = bound->problem;
  const size_t keys = in.keys.size(), values = in.values.size(), terms = in.terms.size();
  const size_t flags = 1 + keys + values + terms + (in.sink.has_value() ? 1 : 0);
  STD_TORCH_CHECK(in.wanted.size() == flags, "attention: wanted must have ", flags,
                  " flags, for query and each key, value, term and the sink, got ",
                  in.wanted.size());
  const auto wants = [&](size_t i) { return in.wanted[i] != 0; };
  const bool packed = p.cu_seqlens_q != nullptr;
  const bool spare_queries = packed && bound->leaves_out_queries(),
             spare_keys = packed && bound->leaves_out_keys();

  TensorList gradients;
  gradients.push_back(wants(0) ? empty_gradient(in.query, spare_queries, &g->dq, g->dq_stride)
                               : nothing(in.query));
  for (size_t s = 0; s < keys; ++s) {
    KeySource& source = bound->sources[s];
    gradients.push_back(wants(1 + s)
                            ? empty_gradient(in.keys[s], spare_keys, &source.dk, source.dk_stride)
                            : nothing(in.keys[s]));
  }
  for (size_t s = 0; s < values; ++s) {
    KeySource& source = bound->sources[s];
    gradients.push_back(wants(1 + keys + s)
                            ? empty_gradient(in.values[s], spare_keys, &source.dv, source.dv_stride)
                            : nothing(in.values[s]));
  }

  const size_t first_term = 1 + keys + values;
  for (size_t t = 0; t < terms; ++t) {
    if (!wants(first_term + t)) continue;
    describe_gradient(in.terms[t], p.dtype, &bound->term(t));
    bound->term(t).grad = g;  // anything but null: the split depends on which terms want a gradient
  }
  const cpu::Threads threads = torch_threads();
  const cpu::BackwardSplit split = cpu::split_backward(p, threads.count);
  TensorList accumulators;
  for (size_t t = 0; t < terms; ++t)
    accumulators.push_back(wants(first_term + t)
                               ? zero_accumulators(in.terms[t], split.partials, &bound->term(t))
                               : nothing(in.terms[t]));
  g->num_partials = split.partials;
  const bool wants_dsink = in.sink.has_value() && wants(flags - 1);
  Tensor shares = nothing(in.query);
  if (wants_dsink) {
    shares = torch::stable::new_zeros(in.query, {p.batch, p.num_heads}, ScalarType::Double);
    g->dsink = static_cast<double*>(shares.mutable_data_ptr());
  }
  cpu::attention_bwd(p, *g, split, threads);

  for (size_t t = 0; t < terms; ++t)
    gradients.push_back(wants(first_term + t) ? term_gradient(in.terms[t], accumulators[t])
                                              : accumulators[t]);
  if (in.sink.has_value())
    gradients.push_back(wants_dsink ? sink_gradient(*in.sink, shares) : nothing(*in.sink));
  return gradients;
}

}  // namespace crossmodal
