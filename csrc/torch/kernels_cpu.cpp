// The CPU's kernels behind the operators, on torch's threads.
#include <torch/csrc/stable/ops.h>

#include "core/given_scores.h"
#include "cpu/attention.h"
#include "cpu/weighted_sum.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// Points the term at accumulators [partials][size of the term], zero at first.
Tensor zero_accumulators(const Tensor& like, int64_t partials, ScoreTerm* term) {
  const ScalarType type = term->grad_is_double ? ScalarType::Double : ScalarType::Float;
  const Tensor accumulators = torch::stable::new_zeros(like, {partials, like.numel()}, type);
  term->grad = accumulators.mutable_data_ptr();
  return accumulators;
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

// The gradient of scores that are read as they are, which is written once.
Tensor empty_dscores(const Tensor& scores, const AttentionProblem& p, ScoreTerm* term) {
  const Tensor dscores = on_large_pages(
      torch::stable::new_empty(scores, {p.batch, p.num_heads, p.seqlen_q, p.total_keys}));
  term->dscores = dscores.mutable_data_ptr();
  return dscores;
}

// Binds what a backward, `g`, writes beside the gradients of rows, calls run(split, threads), and
// returns it.
template <class Backward, class Run>
TermGradients with_term_gradients(const GradientInputs& in, BoundAttention* bound, Backward* g,
                                  const Run& run) {
  const AttentionProblem& p = bound->problem;
  const ScoreTerm* given = given_scores(p);
  // One that is shared by samples or heads is a sum, as any other term's.
  const int64_t all = p.batch * p.num_heads * p.seqlen_q * p.total_keys;
  const auto accumulates = [&](size_t t) {
    return in.wants_term(t) && (&bound->term(t) != given || in.terms[t].numel() != all);
  };
  // Anything but null: the split depends on which terms want a gradient.
  for (size_t t = 0; t < in.terms.size(); ++t)
    if (accumulates(t)) bound->term(t).grad = g;
  const cpu::Threads threads = torch_threads();
  const cpu::BackwardSplit split = cpu::split_backward(p, threads.count);
  TensorList accumulators;
  for (size_t t = 0; t < in.terms.size(); ++t)
    accumulators.push_back(accumulates(t)
                               ? zero_accumulators(in.terms[t], split.partials, &bound->term(t))
                           : in.wants_term(t) ? empty_dscores(in.terms[t], p, &bound->term(t))
                                              : nothing(in.terms[t]));
  g->num_partials = split.partials;
  Tensor shares = nothing(in.query);
  if (in.wants_sink()) {
    shares = torch::stable::new_zeros(in.query, {p.batch, p.num_heads}, ScalarType::Double);
    g->dsink = static_cast<double*>(shares.mutable_data_ptr());
  }
  run(split, threads);

  TermGradients gradients{{}, nothing(in.query)};
  for (size_t t = 0; t < in.terms.size(); ++t)
    gradients.terms.push_back(
        accumulates(t) ? as_gradient_of(in.terms[t], torch::stable::select(accumulators[t], 0, 0))
                       : accumulators[t]);
  if (in.sink.has_value())
    gradients.sink = in.wants_sink() ? sink_gradient(*in.sink, shares) : nothing(*in.sink);
  return gradients;
}

class CpuKernels final : public Kernels {
 public:
  bool read_on_host() const override { return true; }

  void attention_fwd(const AttentionProblem& p, const Tensor&) const override {
    cpu::attention_fwd(p, torch_threads());
  }

  TermGradients attention_bwd(const GradientInputs& in, BoundAttention* bound,
                              AttentionBackward* g) const override {
    return with_term_gradients(in, bound, g,
                               [&](const cpu::BackwardSplit& split, const cpu::Threads& threads) {
                                 cpu::attention_bwd(bound->problem, *g, split, threads);
                               });
  }

  TermGradients attention_double_bwd(const GradientInputs& in, BoundAttention* bound,
                                     AttentionDoubleBackward* g) const override {
    return with_term_gradients(in, bound, g,
                               [&](const cpu::BackwardSplit& split, const cpu::Threads& threads) {
                                 cpu::attention_double_bwd(bound->problem, *g, split, threads);
                               });
  }

  bool associate_needs_statistics() const override { return false; }
  void associate(const AttentionProblem& p, const AssociateProblem& a,
                 const Tensor&) const override {
    cpu::associate(p, a, torch_threads());
  }

  void weighted_sum_fwd(const WeightedSumProblem& p) const override {
    cpu::weighted_sum_fwd(p, torch_threads());
  }

  void weighted_sum_bwd(const WeightedSumProblem& p, const WeightedSumBackward& g) const override {
    cpu::weighted_sum_bwd(p, g, torch_threads());
  }
};

}  // namespace

std::unique_ptr<const Kernels> cpu_kernels() { return std::make_unique<CpuKernels>(); }

}  // namespace crossmodal
