#include "torch/attention_problem.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t wanted) {
  STD_TORCH_CHECK(tensor.size(dim) == wanted, "attention: ", name, " has size ", tensor.size(dim),
                  " in dimension ", dim, ", expected ", wanted);
}

void check_rank(const Tensor& tensor, const char* name, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, "attention: ", name, " must have ", rank,
                  " dimensions, got ", tensor.dim());
}

void check_heads(int64_t num_heads, int64_t num_heads_k) {
  STD_TORCH_CHECK(num_heads_k == num_heads || (num_heads_k > 0 && num_heads % num_heads_k == 0),
                  "attention: the number of key heads, ", num_heads_k,
                  ", must divide that of query heads, ", num_heads);
}

TermType term_type(const Tensor& term) {
  switch (term.scalar_type()) {
    case ScalarType::Bool:
      return TermType::kBool;
    case ScalarType::Float:
      return TermType::kFloat32;
    case ScalarType::BFloat16:
      return TermType::kBFloat16;
    case ScalarType::Half:
      return TermType::kFloat16;
    case ScalarType::Double:
      return TermType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "attention: masks and biases must be bool or floating point");
  }
  return TermType::kBool;  // not reached: the check above throws
}

}  // namespace

void row_strides(const Tensor& tensor, int64_t (&strides)[3]) {
  if (tensor.dim() == 3) {
    strides[0] = 0;
    strides[1] = tensor.stride(1);
    strides[2] = tensor.stride(0);
    return;
  }
  for (int64_t d = 0; d < 3; ++d) strides[d] = tensor.stride(d);
}

ScoreTerm describe_term(const Tensor& tensor, const int64_t (&sizes)[4]) {
  check_rank(tensor, "a mask or bias", 4);
  ScoreTerm term{};
  term.data = tensor.const_data_ptr();
  term.type = term_type(tensor);
  term.factor = 1;
  for (int64_t d = 0; d < 4; ++d) {
    if (tensor.size(d) != 1) check_size(tensor, "a mask or bias", d, sizes[d]);
    term.stride[d] = tensor.size(d) == 1 ? 0 : tensor.stride(d);
  }
  return term;
}

BoundAttention::BoundAttention(const AttentionArguments& a) {
  check_rank(a.query, "query", 4);
  const size_t count = a.keys.size();
  STD_TORCH_CHECK(count > 0, "attention: at least one source is needed");
  STD_TORCH_CHECK(a.values.size() == count && a.key_lengths.size() == count,
                  "attention: keys, values and key_lengths must have one entry per source");
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
  problem.dtype = dtype_of(query, "attention", "query");
  if (a.query_lengths.has_value()) {
    const Tensor row = keep(checked_lengths(*a.query_lengths, "attention", "query_lengths",
                                            problem.batch, problem.seqlen_q));
    problem.query_lengths = row.const_data_ptr();
    problem.query_lengths_are_int64 = row.scalar_type() == ScalarType::Long;
  }
  bind_options(a.options, a.sink, a.dropout_seed);
  for (size_t s = 0; s < count; ++s) add_source(a.keys[s], a.values[s], a.key_lengths[s]);
  for (size_t t = 0; t < a.terms.size(); ++t) add_term(a.terms[t], a.term_sources[t]);
  problem.sources = sources.data();
  problem.num_sources = static_cast<int>(count);
  STD_TORCH_CHECK(count == 1 || (problem.window_left < 0 && problem.window_right < 0),
                  "attention: a window needs a single source, got ", count);
}

BoundAttention::BoundAttention(const PackedArguments& a) : read_on_host_(a.read_on_host) {
  check_rank(a.query, "query", 3);
  check_rank(a.key, "key", 3);
  check_rank(a.value, "value", 3);
  STD_TORCH_CHECK(a.max_seqlen_q >= 0 && a.max_seqlen_k >= 0,
                  "attention: max_seqlen must not be negative");
  const Tensor query = keep(with_unit_last_stride(a.query)),
               key = keep(with_unit_last_stride(a.key)),
               value = keep(with_unit_last_stride(a.value));
  problem.q = query.const_data_ptr();
  row_strides(query, problem.q_stride);
  problem.batch = std::max<int64_t>(a.cu_seqlens_q.numel() - 1, 0);
  problem.num_heads = query.size(1);
  problem.head_dim = query.size(2);
  problem.head_dim_v = value.size(2);
  problem.total_q = query.size(0);
  problem.seqlen_q = std::min(a.max_seqlen_q, problem.total_q);
  problem.dtype = dtype_of(query, "attention", "query");
  STD_TORCH_CHECK(dtype_of(key, "attention", "key") == problem.dtype &&
                      dtype_of(value, "attention", "value") == problem.dtype,
                  "attention: query, key and value must have the same dtype");
  STD_TORCH_CHECK(a.cu_seqlens_k.numel() == a.cu_seqlens_q.numel(),
                  "attention: cu_seqlens_q and cu_seqlens_k must have as many entries");
  bind_options(a.options, a.sink, a.dropout_seed);

  KeySource source{};
  check_size(key, "key", 2, problem.head_dim);
  check_size(value, "value", 0, key.size(0));
  check_size(value, "value", 1, key.size(1));
  source.num_heads_k = key.size(1);
  check_heads(problem.num_heads, source.num_heads_k);
  source.total_k = key.size(0);
  source.seqlen_k = std::min(a.max_seqlen_k, key.size(0));
  source.k = key.const_data_ptr();
  source.v = value.const_data_ptr();
  row_strides(key, source.k_stride);
  row_strides(value, source.v_stride);
  problem.cu_seqlens_q =
      ascending(a.cu_seqlens_q, "cu_seqlens_q", problem.total_q, a.max_seqlen_q, &cu_seqlens_q_);
  source.cu_seqlens =
      ascending(a.cu_seqlens_k, "cu_seqlens_k", key.size(0), a.max_seqlen_k, &cu_seqlens_k_);
  problem.total_keys = source.seqlen_k;
  sources.push_back(source);
  problem.sources = sources.data();
  problem.num_sources = 1;
}

// A copy that never descends and never leaves [0, total], so that samples own disjoint rows
// whatever came.
const int32_t* BoundAttention::ascending(const Tensor& cu_seqlens, const char* name, int64_t total,
                                         int64_t longest, std::vector<int32_t>* kept) {
  STD_TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == ScalarType::Int,
                  "attention: ", name, " must be a row of int32");
  const Tensor row = keep(torch::stable::contiguous(cu_seqlens));
  if (!read_on_host_) return static_cast<const int32_t*>(row.const_data_ptr());
  const int32_t* given = static_cast<const int32_t*>(row.const_data_ptr());
  kept->assign(given, given + row.numel());
  int64_t before = 0;
  for (size_t i = 0; i < kept->size(); ++i) {
    const int64_t wanted = (*kept)[i], here = std::max(before, std::min<int64_t>(wanted, total));
    if (checks_values())
      STD_TORCH_CHECK(here == wanted && (i == 0 ? wanted == 0 : here - before <= longest),
                      "attention: ", name, " must ascend within [0, ", total, "] by at most ",
                      longest, ", got ", wanted, " at index ", i);
    (*kept)[i] = static_cast<int32_t>(here);
    before = here;
  }
  return kept->data();
}

static bool leaves_out(const std::vector<int32_t>& cu_seqlens, int64_t total, int64_t longest) {
  int64_t taken = 0;
  for (size_t b = 1; b < cu_seqlens.size(); ++b)
    taken += std::min<int64_t>(cu_seqlens[b] - cu_seqlens[b - 1], longest);
  return taken != total;
}

bool BoundAttention::leaves_out_queries() const {
  if (!read_on_host_) return problem.batch == 0 || problem.seqlen_q == 0;
  return leaves_out(cu_seqlens_q_, problem.total_q, problem.seqlen_q);
}

bool BoundAttention::leaves_out_keys() const {
  if (!read_on_host_) return problem.batch == 0 || sources[0].seqlen_k == 0;
  return leaves_out(cu_seqlens_k_, kept_[1].size(0), sources[0].seqlen_k);
}

ScoreTerm& BoundAttention::term(int64_t t) {
  const auto [source, place] = term_places_[t];
  return sources[source].terms[place];
}

Tensor BoundAttention::keep(const Tensor& tensor) {
  kept_.push_back(tensor);
  check_same_device(tensor, kept_.front(), "attention", "every tensor");
  return tensor;
}

void BoundAttention::bind_options(const ScoreOptions& o, const OptionalTensor& sink,
                                  const OptionalTensor& dropout_seed) {
  // Farther than any sequence is long, and far from overflow when positions are added.
  constexpr int64_t kFarthest = int64_t{1} << 40;
  STD_TORCH_CHECK(o.window.size() == 2, "attention: window must have two entries, got ",
                  o.window.size());
  problem.scale = o.scale;
  problem.softcap = o.softcap;
  problem.window_left = std::min(o.window[0], kFarthest);
  problem.window_right = std::min(o.window[1], kFarthest);
  problem.lower_right = o.lower_right;
  problem.allow_tf32 = o.allow_tf32;
  if (sink.has_value()) {
    STD_TORCH_CHECK(sink->dim() == 2 && (sink->size(0) == 1 || sink->size(0) == problem.batch) &&
                        sink->size(1) == problem.num_heads &&
                        sink->scalar_type() == accumulator_type(problem.dtype),
                    "attention: sink must be (1 or batch, num_heads) of the accumulator's dtype");
    const Tensor rows = keep(torch::stable::contiguous(*sink));
    problem.sink = rows.const_data_ptr();
    problem.sink_stride = rows.size(0) == 1 ? 0 : problem.num_heads;
  }
  STD_TORCH_CHECK(o.dropout_p >= 0 && o.dropout_p <= 1,
                  "attention: dropout_p must lie in [0, 1], got ", o.dropout_p);
  if (o.dropout_p > 0) {
    STD_TORCH_CHECK(dropout_seed.has_value() && dropout_seed->numel() == 1 &&
                        dropout_seed->scalar_type() == ScalarType::Long,
                    "attention: dropout needs a seed of one int64");
    problem.dropout_p = o.dropout_p;
    problem.dropout_seed = static_cast<const int64_t*>(keep(*dropout_seed).const_data_ptr());
  }
}

void BoundAttention::add_source(const Tensor& key_in, const Tensor& value_in,
                                const OptionalTensor& lengths) {
  check_rank(key_in, "key", 4);
  check_rank(value_in, "value", 4);
  const Tensor key = keep(with_unit_last_stride(key_in)),
               value = keep(with_unit_last_stride(value_in));
  STD_TORCH_CHECK(dtype_of(key, "attention", "key") == problem.dtype &&
                      dtype_of(value, "attention", "value") == problem.dtype,
                  "attention: query, key and value must have the same dtype");
  KeySource source{};
  source.num_heads_k = key.size(1);
  check_heads(problem.num_heads, source.num_heads_k);
  source.seqlen_k = key.size(2);
  STD_TORCH_CHECK(source.seqlen_k <= INT32_MAX, "attention: more than 2^31 - 1 keys in one source");
  const int64_t sizes[4] = {problem.batch, source.num_heads_k, source.seqlen_k, problem.head_dim};
  for (int64_t d = 0; d < 4; ++d) check_size(key, "key", d, sizes[d]);
  for (int64_t d = 0; d < 3; ++d) check_size(value, "value", d, sizes[d]);
  check_size(value, "value", 3, problem.head_dim_v);
  source.k = key.const_data_ptr();
  source.v = value.const_data_ptr();
  row_strides(key, source.k_stride);
  row_strides(value, source.v_stride);
  if (lengths.has_value()) {
    const Tensor row =
        keep(checked_lengths(*lengths, "attention", "key_lengths", problem.batch, source.seqlen_k));
    source.lengths = row.const_data_ptr();
    source.lengths_are_int64 = row.scalar_type() == ScalarType::Long;
  }
  problem.total_keys += source.seqlen_k;
  sources.push_back(source);
}

void BoundAttention::add_term(const Tensor& tensor, int64_t index) {
  STD_TORCH_CHECK(index >= 0 && index < static_cast<int64_t>(sources.size()),
                  "attention: no source ", index);
  KeySource& source = sources[index];
  STD_TORCH_CHECK(source.num_terms < kMaxTerms, "attention: more than ", kMaxTerms,
                  " terms for source ", index);
  const int64_t sizes[4] = {problem.batch, problem.num_heads, problem.seqlen_q, source.seqlen_k};
  source.terms[source.num_terms] = describe_term(keep(tensor), sizes);
  term_places_.emplace_back(index, source.num_terms++);
}

}  // namespace crossmodal
