// Tensors -> AttentionProblem, for every operator and device that has one.
#pragma once

#include <vector>

#include "core/attention_problem.h"
#include "torch/tensors.h"

namespace crossmodal {

using TensorList = std::vector<torch::stable::Tensor>;

// What every attention operator is told beside its tensors.
struct ScoreOptions {
  double scale;
  double softcap = 0;
  std::vector<int64_t> window = {-1, -1};  // keys to the left and right of a query's own, -1 = open
  bool lower_right = false;
  double dropout_p = 0;
  bool allow_tf32 = false;
};

// Padded samples, as the operators receive them.
struct AttentionArguments {
  const torch::stable::Tensor& query;
  const TensorList& keys;
  const TensorList& values;
  const std::vector<OptionalTensor>& key_lengths;
  const TensorList& terms;
  const std::vector<int64_t>& term_sources;
  const OptionalTensor& query_lengths;
  const OptionalTensor& sink;
  const OptionalTensor& dropout_seed;
  ScoreOptions options;
};

// Packed samples: query (total_q, num_heads, head_dim), key and value (total_k, num_heads_k,
// width).
struct PackedArguments {
  const torch::stable::Tensor& query;
  const torch::stable::Tensor& key;
  const torch::stable::Tensor& value;
  const torch::stable::Tensor& cu_seqlens_q;
  const torch::stable::Tensor& cu_seqlens_k;
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  const OptionalTensor& sink;
  const OptionalTensor& dropout_seed;
  ScoreOptions options;
  bool read_on_host;  // otherwise offsets stay where they are, and kernels clamp them
};

// A problem and what it borrows from: tensors stay alive, and pointers into `sources` stay valid,
// as long as this does.
class BoundAttention {
 public:
  explicit BoundAttention(const AttentionArguments& arguments);
  explicit BoundAttention(const PackedArguments& arguments);
  BoundAttention(const BoundAttention&) = delete;

  AttentionProblem problem{};
  std::vector<KeySource> sources;

  // The source and place of argument term t.
  ScoreTerm& term(int64_t t);
  std::pair<int64_t, int> place_of_term(int64_t t) const { return term_places_[t]; }
  int64_t seqlen_k_of_term(int64_t t) const { return sources[term_places_[t].first].seqlen_k; }

  // Packed rows that belong to no sample and that kernels do not write: all there are, where
  // offsets were read here; else the kernels see to them, if there is anything to run.
  bool leaves_out_queries() const;
  bool leaves_out_keys() const;

 private:
  torch::stable::Tensor keep(const torch::stable::Tensor& tensor);
  void bind_options(const ScoreOptions& options, const OptionalTensor& sink,
                    const OptionalTensor& dropout_seed);
  void add_source(const torch::stable::Tensor& key, const torch::stable::Tensor& value,
                  const OptionalTensor& lengths);
  void add_term(const torch::stable::Tensor& term, int64_t source);
  const int32_t* ascending(const torch::stable::Tensor& cu_seqlens, const char* name, int64_t total,
                           int64_t longest, std::vector<int32_t>* kept);

  bool read_on_host_ = true;
  TensorList kept_;  // the query first
  std::vector<int32_t> cu_seqlens_q_, cu_seqlens_k_;
  std::vector<std::pair<int64_t, int>> term_places_;
};

// A mask or bias whose dimensions are 1 or those of `sizes`, (batch, num_heads, seqlen_q,
// seqlen_k). It borrows from the tensor.
ScoreTerm describe_term(const torch::stable::Tensor& tensor, const int64_t (&sizes)[4]);

// Strides of batch, head and row of a (batch, num_heads, rows, width) tensor, or of a packed
// (rows, num_heads, width) one, whose batch stride is 0.
void row_strides(const torch::stable::Tensor& tensor, int64_t (&strides)[3]);

}  // namespace crossmodal
