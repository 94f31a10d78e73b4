// The backward of attention's backward.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "core/double_backward.h"
#include "torch/attention.h"
#include "torch/attention_gradients.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::stable::Tensor;

namespace {

// What flows back to one call of backward, as kernels read it. Copies stay alive with it.
class Cotangents {
 public:
  explicit Cotangents(const BoundAttention& bound)
      : dtype_(bound.problem.dtype), sources_(bound.sources.size()) {}

  const SourceCotangents* sources() const { return sources_.data(); }
  SourceCotangents& of_source(size_t s) { return sources_[s]; }

  // Rows in the shape (batch, num_heads, rows, width), packed (rows, num_heads, width).
  RowsLike rows(const OptionalTensor& given, const std::vector<int64_t>& shape, const char* name) {
    RowsLike rows{};
    if (!given.has_value()) return rows;
    const Tensor tensor = keep(with_unit_last_stride(*given));
    check_shape(tensor, shape, name);
    STD_TORCH_CHECK(dtype_of(tensor, "attention", name) == dtype_, "attention: ", name,
                    " must have query's dtype");
    rows.data = tensor.const_data_ptr();
    row_strides(tensor, rows.stride);
    return rows;
  }

  // Numbers of the accumulator's dtype, one after the other.
  const void* numbers(const OptionalTensor& given, const std::vector<int64_t>& shape,
                      const char* name) {
    if (!given.has_value()) return nullptr;
    const Tensor tensor = keep(torch::stable::contiguous(*given));
    check_shape(tensor, shape, name);
    STD_TORCH_CHECK(tensor.scalar_type() == accumulator_type(dtype_), "attention: ", name,
                    " must have the accumulator's dtype");
    return tensor.const_data_ptr();
  }

  ScoreTerm term(const OptionalTensor& given, const Tensor& like, const int64_t (&sizes)[4]) {
    if (!given.has_value()) return {};
    const Tensor tensor = keep(*given);
    check_shape(tensor, shape_of(like), "ddterms");
    return describe_term(tensor, sizes);
  }

  static std::vector<int64_t> shape_of(const Tensor& tensor) {
    std::vector<int64_t> shape;
    for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
    return shape;
  }

 private:
  Tensor keep(const Tensor& tensor) {
    kept_.push_back(tensor);
    check_same_device(tensor, kept_.front(), "attention", "every tensor");
    return tensor;
  }

  static void check_shape(const Tensor& tensor, const std::vector<int64_t>& shape,
                          const char* name) {
    bool same = tensor.dim() == static_cast<int64_t>(shape.size());
    for (int64_t d = 0; same && d < tensor.dim(); ++d) same = tensor.size(d) == shape[d];
    STD_TORCH_CHECK(same, "attention: ", name, " has another shape than what it flows back to");
  }

  DType dtype_;
  std::vector<SourceCotangents> sources_;
  TensorList kept_;
};

// What a call of backward was given and what flows back to what it returned.
struct Flow {
  const OptionalTensor& ddquery;
  const std::vector<OptionalTensor>& ddkeys;
  const std::vector<OptionalTensor>& ddvalues;
  const std::vector<OptionalTensor>& ddterms;
  const OptionalTensor& ddsink;
  const Tensor& dout;
  const OptionalTensor& dlse;
  const OptionalTensor& dmass;
  const Tensor& statistics;
};

// Gradients of dout, dlse and dmass, then those of `inputs`.
TensorList double_gradients(const Kernels& kernels, const GradientInputs& inputs, const Flow& flow,
                            bool wants_dout, bool wants_dlse, bool wants_dmass,
                            BoundAttention* bound) {
  AttentionProblem& p = bound->problem;
  const size_t sources = inputs.keys.size(), terms = inputs.terms.size();
  STD_TORCH_CHECK(p.head_dim > 0, "attention: no second derivatives without features");
  STD_TORCH_CHECK(flow.ddkeys.size() == sources && flow.ddvalues.size() == sources &&
                      flow.ddterms.size() == terms,
                  "attention: ddkeys, ddvalues and ddterms must have one entry per tensor that "
                  "they flow back to");
  const bool packed = p.cu_seqlens_q != nullptr;
  const std::vector<int64_t> rows = packed ? std::vector<int64_t>{p.num_heads, p.total_q}
                                           : std::vector<int64_t>{p.batch, p.num_heads, p.seqlen_q};
  const std::vector<int64_t> outputs =
      packed ? std::vector<int64_t>{p.total_q, p.num_heads, p.head_dim_v}
             : std::vector<int64_t>{p.batch, p.num_heads, p.seqlen_q, p.head_dim_v};
  const std::vector<int64_t> masses = {p.batch, p.num_heads, p.seqlen_q, p.num_sources};
  bind_statistics(flow.statistics, p.num_heads * (packed ? p.total_q : p.batch * p.seqlen_q), &p);

  Cotangents cotangents(*bound);
  AttentionDoubleBackward g{};
  g.dout = cotangents.rows(flow.dout, outputs, "dout");
  g.dlse = cotangents.numbers(flow.dlse, rows, "dlse");
  g.dmass = cotangents.numbers(flow.dmass, masses, "dmass");
  g.ddq = cotangents.rows(flow.ddquery, Cotangents::shape_of(inputs.query), "ddquery");
  for (size_t s = 0; s < sources; ++s) {
    // A packed call has one source.
    SourceCotangents& of_source = cotangents.of_source(s);
    of_source.ddk = cotangents.rows(flow.ddkeys[s], Cotangents::shape_of(inputs.keys[s]), "ddkeys");
    of_source.ddv =
        cotangents.rows(flow.ddvalues[s], Cotangents::shape_of(inputs.values[s]), "ddvalues");
  }
  for (size_t t = 0; t < terms; ++t) {
    const int64_t sizes[4] = {p.batch, p.num_heads, p.seqlen_q, bound->seqlen_k_of_term(t)};
    const auto [source, place] = bound->place_of_term(t);
    cotangents.of_source(source).ddterms[place] =
        cotangents.term(flow.ddterms[t], inputs.terms[t], sizes);
  }
  if (inputs.sink.has_value()) {
    g.ddsink = cotangents.numbers(flow.ddsink, Cotangents::shape_of(*inputs.sink), "ddsink");
    g.ddsink_stride = p.sink_stride;
  }
  g.sources = cotangents.sources();

  const bool spare_queries = packed && bound->leaves_out_queries();
  // Three tensors: an operator may not return one twice.
  TensorList gradients = {nothing(inputs.query), nothing(inputs.query), nothing(inputs.query)};
  const auto empty_numbers = [&](const std::vector<int64_t>& shape) {
    Tensor numbers = torch::stable::new_empty(inputs.query, shape, accumulator_type(p.dtype));
    if (spare_queries) torch::stable::zero_(numbers);
    return numbers;
  };
  if (wants_dout) gradients[0] = empty_gradient(flow.dout, spare_queries, &g.ddout, g.ddout_stride);
  if (wants_dlse) g.ddlse = (gradients[1] = empty_numbers(rows)).mutable_data_ptr();
  if (wants_dmass) g.ddmass = (gradients[2] = empty_numbers(masses)).mutable_data_ptr();
  const TensorList row = row_gradients(inputs, bound, &g.dq, g.dq_stride);
  gradients.insert(gradients.end(), row.begin(), row.end());
  const TermGradients others = kernels.attention_double_bwd(inputs, bound, &g);
  gradients.insert(gradients.end(), others.terms.begin(), others.terms.end());
  if (inputs.sink.has_value()) gradients.push_back(others.sink);
  return gradients;
}

void check_flags(const std::vector<int64_t>& wanted, size_t own) {
  STD_TORCH_CHECK(wanted.size() >= own, "attention: wanted must have ", own,
                  " flags more than backward's");
}

}  // namespace

TensorList attention_double_bwd(
    const OptionalTensor& ddquery, const std::vector<OptionalTensor>& ddkeys,
    const std::vector<OptionalTensor>& ddvalues, const std::vector<OptionalTensor>& ddterms,
    const OptionalTensor& ddsink, const Tensor& dout, const OptionalTensor& dlse,
    const OptionalTensor& dmass, const Tensor& query, const TensorList& keys,
    const TensorList& values, const std::vector<OptionalTensor>& key_lengths,
    const TensorList& terms, const std::vector<int64_t>& term_sources,
    const OptionalTensor& query_lengths, const OptionalTensor& sink,
    const OptionalTensor& dropout_seed, const Tensor& statistics, double scale, double softcap,
    double dropout_p, const std::vector<int64_t>& window, bool lower_right, bool allow_tf32,
    const std::vector<int64_t>& wanted) {
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
  check_flags(wanted, 3);
  const std::vector<int64_t> of_inputs(wanted.begin() + 3, wanted.end());
  return double_gradients(
      *kernels, {query, keys, values, terms, sink, of_inputs},
      {ddquery, ddkeys, ddvalues, ddterms, ddsink, dout, dlse, dmass, statistics}, wanted[0],
      wanted[1], wanted[2], &bound);
}

TensorList attention_varlen_double_bwd(
    const OptionalTensor& ddquery, const OptionalTensor& ddkey, const OptionalTensor& ddvalue,
    const OptionalTensor& ddsink, const Tensor& dout, const OptionalTensor& dlse,
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cu_seqlens_q,
    const Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
    const OptionalTensor& sink, const OptionalTensor& dropout_seed, const Tensor& statistics,
    double scale, double softcap, double dropout_p, const std::vector<int64_t>& window,
    bool lower_right, bool allow_tf32, const std::vector<int64_t>& wanted) {
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
  check_flags(wanted, 2);
  const std::vector<int64_t> of_inputs(wanted.begin() + 2, wanted.end());
  const TensorList keys = {key}, values = {value}, no_terms;
  const std::vector<OptionalTensor> ddkeys = {ddkey}, ddvalues = {ddvalue}, nothing_of_terms;
  const OptionalTensor none;
  TensorList gradients = double_gradients(
      *kernels, {query, keys, values, no_terms, sink, of_inputs},
      {ddquery, ddkeys, ddvalues, nothing_of_terms, ddsink, dout, dlse, none, statistics},
      wanted[0], wanted[1], false, &bound);
  gradients.erase(gradients.begin() + 2);  // there is no mass
  return gradients;
}

}  // namespace crossmodal
