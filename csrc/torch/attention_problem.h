// Tensors -> AttentionProblem, for every operator and device that has one.
#pragma once

#include <vector>

#include "core/attention_problem.h"
#include "torch/attention.h"

namespace crossmodal {

// The arguments that describe a problem, as the operators receive them.
struct AttentionArguments {
  const torch::stable::Tensor& query;
  const TensorList& keys;
  const TensorList& values;
  const std::vector<OptionalTensor>& lengths;
  const TensorList& terms;
  const std::vector<int64_t>& term_sources;
  bool is_causal;
  double scale;
};

// A problem and what it borrows from: tensors stay alive, and pointers into `sources` stay valid,
// as long as this does.
class BoundAttention {
 public:
  explicit BoundAttention(const AttentionArguments& arguments);
  BoundAttention(const BoundAttention&) = delete;

  AttentionProblem problem{};
  std::vector<KeySource> sources;

  // The source and place of argument term t.
  ScoreTerm& term(int64_t t);

 private:
  torch::stable::Tensor keep(const torch::stable::Tensor& tensor);
  void add_source(const torch::stable::Tensor& key, const torch::stable::Tensor& value,
                  const OptionalTensor& lengths);
  void add_term(const torch::stable::Tensor& term, int64_t source);

  TensorList kept_;
  std::vector<std::pair<int64_t, int>> term_places_;
};

// Strides of batch, head and row of a (batch, num_heads, rows, width) tensor.
void row_strides(const torch::stable::Tensor& tensor, int64_t (&strides)[3]);

}  // namespace crossmodal
