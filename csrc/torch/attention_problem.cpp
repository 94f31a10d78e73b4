#include "torch/attention_problem.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t wanted) {
  STD_TORCH_CHECK(tensor.size(dim) == wanted, "attention: ", name, " has size ", tensor.size(dim),
                  " in dimension ", dim, ", expected ", wanted);
}

void check_rank(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, "attention: ", name, " must have 4 dimensions, got ",
                  tensor.dim());
}

TermType term_type(const Tensor& term) {
  switch (term.scalar_type()) {
    case ScalarType::Bool:
      return TermType::kBool;
    case ScalarType::Float:
      return TermType::kFloat32;
    case ScalarType::BFloat16:
      return TermType::kBFloat16;
    case ScalarType::Double:
      return TermType::kFloat64;
    default:
      STD_TORCH_CHECK(false,
                      "attention: masks and biases must be bool, float32, bfloat16 or float64");
  }
  return TermType::kBool;  // not reached: the check above throws
}

}  // namespace

void row_strides(const Tensor& tensor, int64_t (&strides)[3]) {
  for (int64_t d = 0; d < 3; ++d) strides[d] = tensor.stride(d);
}

BoundAttention::BoundAttention(const AttentionArguments& a) {
  check_rank(a.query, "query");
  const size_t count = a.keys.size();
  STD_TORCH_CHECK(count > 0, "attention: at least one source is needed");
  STD_TORCH_CHECK(a.values.size() == count && a.lengths.size() == count,
                  "attention: keys, values and lengths must have one entry per source");
  STD_TORCH_CHECK(a.terms.size() == a.term_sources.size(),
                  "attention: one source index per term is needed");

  const Tensor query = keep(with_unit_last_stride(a.query));
  problem.q = query.const_data_ptr();
  row_strides(query, problem.q_stride);
  problem.batch = query.size(0);
  problem.num_heads = query.size(1);
  problem.seqlen_q = query.size(2);
  problem.head_dim = query.size(3);
  problem.head_dim_v = a.values[0].size(3);
  problem.scale = a.scale;
  problem.is_causal = a.is_causal;
  problem.dtype = dtype_of(query, "attention", "query");
  for (size_t s = 0; s < count; ++s) add_source(a.keys[s], a.values[s], a.lengths[s]);
  for (size_t t = 0; t < a.terms.size(); ++t) add_term(a.terms[t], a.term_sources[t]);
  problem.sources = sources.data();
  problem.num_sources = static_cast<int>(count);
}

ScoreTerm& BoundAttention::term(int64_t t) {
  const auto [source, place] = term_places_[t];
  return sources[source].terms[place];
}

Tensor BoundAttention::keep(const Tensor& tensor) {
  kept_.push_back(tensor);
  return tensor;
}

void BoundAttention::add_source(const Tensor& key_in, const Tensor& value_in,
                                const OptionalTensor& lengths) {
  check_rank(key_in, "key");
  check_rank(value_in, "value");
  const Tensor key = keep(with_unit_last_stride(key_in)),
               value = keep(with_unit_last_stride(value_in));
  STD_TORCH_CHECK(dtype_of(key, "attention", "key") == problem.dtype &&
                      dtype_of(value, "attention", "value") == problem.dtype,
                  "attention: query, key and value must have the same dtype");
  KeySource source{};
  source.seqlen_k = key.size(2);
  STD_TORCH_CHECK(source.seqlen_k <= INT32_MAX, "attention: more than 2^31 - 1 keys in one source");
  const int64_t sizes[4] = {problem.batch, problem.num_heads, source.seqlen_k, problem.head_dim};
  for (int64_t d = 0; d < 4; ++d) check_size(key, "key", d, sizes[d]);
  for (int64_t d = 0; d < 3; ++d) check_size(value, "value", d, sizes[d]);
  check_size(value, "value", 3, problem.head_dim_v);
  source.k = key.const_data_ptr();
  source.v = value.const_data_ptr();
  row_strides(key, source.k_stride);
  row_strides(value, source.v_stride);
  if (lengths.has_value()) {
    const Tensor row = keep(checked_lengths(*lengths, "attention", problem.batch, source.seqlen_k));
    source.lengths = row.const_data_ptr();
    source.lengths_are_int64 = row.scalar_type() == ScalarType::Long;
  }
  problem.total_keys += source.seqlen_k;
  sources.push_back(source);
}

void BoundAttention::add_term(const Tensor& tensor, int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(sources.size()),
                  "attention: no source ", index);
  check_rank(tensor, "a mask or bias");
  KeySource& source = sources[index];
  STD_TORCH_CHECK(source.num_terms < kMaxTerms, "attention: more than ", kMaxTerms,
                  " terms for source ", index);
  ScoreTerm& term = source.terms[source.num_terms];
  term.data = keep(tensor).const_data_ptr();
  term.type = term_type(tensor);
  const int64_t sizes[4] = {problem.batch, problem.num_heads, problem.seqlen_q, source.seqlen_k};
  for (int64_t d = 0; d < 4; ++d) {
    if (tensor.size(d) != 1) check_size(tensor, "a mask or bias", d, sizes[d]);
    term.stride[d] = tensor.size(d) == 1 ? 0 : tensor.stride(d);
  }
  term_places_.emplace_back(index, source.num_terms++);
}

}  // namespace crossmodal
