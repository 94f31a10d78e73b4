#include "torch/attention_gradients.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "torch/kernels.h"

namespace crossmodal {

using torch::stable::Tensor;

Tensor empty_gradient(const Tensor& like, bool zero, void** data, int64_t (&strides)[3]) {
  Tensor gradient = like.dim() == 4 ? empty_in_order_of(like, like.size(2), like.size(3))
                                    : on_large_pages(torch::stable::new_empty(
                                          like, {like.size(0), like.size(1), like.size(2)}));
  if (zero) torch::stable::zero_(gradient);
  *data = gradient.mutable_data_ptr();
  row_strides(gradient, strides);
  return gradient;
}

Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

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

Tensor as_gradient_of(const Tensor& term, const Tensor& sums) {
  const std::vector<int64_t> shape = {term.size(0), term.size(1), term.size(2), term.size(3)};
  Tensor gradient = torch::stable::new_empty(term, shape);
  return torch::stable::copy_(gradient, torch::stable::view(sums, shape));
}

Tensor empty_statistics(const Tensor& like, DType dtype, int64_t rows, bool for_backward) {
  return torch::stable::new_empty(like, {for_backward ? 2 : 0, rows}, accumulator_type(dtype));
}

void fill_statistics_of_nothing(Tensor* statistics) {
  Tensor tops = torch::stable::select(*statistics, 0, 0);
  Tensor sums = torch::stable::select(*statistics, 0, 1);
  torch::stable::fill_(tops, -INFINITY);
  torch::stable::zero_(sums);
}

void bind_statistics(const Tensor& statistics, int64_t rows, AttentionProblem* p) {
  STD_TORCH_CHECK(statistics.numel() == 2 * rows && statistics.is_contiguous() &&
                      statistics.scalar_type() == accumulator_type(p->dtype),
                  "attention: statistics must come from forward with for_backward");
  char* data = static_cast<char*>(const_cast<void*>(statistics.const_data_ptr()));
  p->row_top = data;
  p->row_sum = data + rows * (p->dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
}

void GradientInputs::check() const {
  const size_t flags = first_term() + terms.size() + (sink.has_value() ? 1 : 0);
  STD_TORCH_CHECK(wanted.size() == flags, "attention: wanted must have ", flags,
                  " flags, for query and each key, value, term and the sink, got ", wanted.size());
}

TensorList row_gradients(const GradientInputs& in, BoundAttention* bound, void** dq,
                         int64_t (&dq_stride)[3]) {
  const AttentionProblem& p = bound->problem;
  const size_t keys = in.keys.size(), values = in.values.size(), terms = in.terms.size();
  in.check();
  const auto wants = [&](size_t i) { return in.wanted[i] != 0; };
  const bool packed = p.cu_seqlens_q != nullptr;
  const bool spare_queries = packed && bound->leaves_out_queries(),
             spare_keys = packed && bound->leaves_out_keys();

  TensorList gradients;
  gradients.push_back(wants(0) ? empty_gradient(in.query, spare_queries, dq, dq_stride)
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
  for (size_t t = 0; t < terms; ++t)
    if (in.wants_term(t)) describe_gradient(in.terms[t], p.dtype, &bound->term(t));
  return gradients;
}

TensorList attention_gradients(const Kernels& kernels, const GradientInputs& in,
                               BoundAttention* bound, AttentionBackward* g) {
  TensorList gradients = row_gradients(in, bound, &g->dq, g->dq_stride);
  const TermGradients others = kernels.attention_bwd(in, bound, g);
  gradients.insert(gradients.end(), others.terms.begin(), others.terms.end());
  if (in.sink.has_value()) gradients.push_back(others.sink);
  return gradients;
}

}  // namespace crossmodal
