// Every operator's schema and registration, nothing else.
#include <torch/csrc/stable/library.h>

#include "torch/attention.h"
#include "torch/weighted_sum.h"

STABLE_TORCH_LIBRARY(crossmodal, m) {
  m.def(
      "attention_fwd(Tensor query, Tensor[] keys, Tensor[] values, Tensor?[] key_lengths, "
      "Tensor[] terms, int[] term_sources, Tensor? query_lengths, Tensor? sink, "
      "Tensor? dropout_seed, float scale, float softcap, float dropout_p, int[] window, "
      "bool lower_right, bool allow_tf32, bool return_mass, bool for_backward) "
      "-> (Tensor out, Tensor lse, Tensor mass, Tensor statistics)");
  m.def(
      "attention_plain(Tensor query, Tensor key, Tensor value, float scale, bool is_causal, bool "
      "allow_tf32) -> "
      "Tensor");
  m.def(
      "attention_plain_fwd(Tensor query, Tensor key, Tensor value, float scale, bool is_causal, "
      "bool allow_tf32) -> "
      "(Tensor out, Tensor statistics)");
  m.def(
      "attention_plain_bwd(Tensor dout, Tensor query, Tensor key, Tensor value, Tensor out, "
      "Tensor statistics, float scale, bool is_causal, bool allow_tf32, bool wants_dquery, bool "
      "wants_dkey, "
      "bool wants_dvalue) -> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_bwd(Tensor dout, Tensor? dlse, Tensor? dmass, Tensor query, Tensor[] keys, "
      "Tensor[] values, Tensor?[] key_lengths, Tensor[] terms, int[] term_sources, "
      "Tensor? query_lengths, Tensor? sink, Tensor? dropout_seed, Tensor out, Tensor statistics, "
      "Tensor mass, float scale, float softcap, float dropout_p, int[] window, bool lower_right, "
      "bool allow_tf32, "
      "int[] wanted) -> Tensor[]");
  m.def(
      "attention_double_bwd(Tensor? ddquery, Tensor?[] ddkeys, Tensor?[] ddvalues, "
      "Tensor?[] ddterms, Tensor? ddsink, Tensor dout, Tensor? dlse, Tensor? dmass, Tensor query, "
      "Tensor[] keys, Tensor[] values, Tensor?[] key_lengths, Tensor[] terms, int[] term_sources, "
      "Tensor? query_lengths, Tensor? sink, Tensor? dropout_seed, Tensor statistics, float scale, "
      "float softcap, float dropout_p, int[] window, bool lower_right, bool allow_tf32, int[] "
      "wanted) -> Tensor[]");
  m.def(
      "attention_varlen_fwd(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? sink, "
      "Tensor? dropout_seed, float scale, float softcap, float dropout_p, int[] window, "
      "bool lower_right, bool allow_tf32, bool for_backward) -> (Tensor out, Tensor lse, Tensor "
      "statistics)");
  m.def(
      "attention_varlen_bwd(Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, "
      "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, "
      "Tensor? sink, Tensor? dropout_seed, Tensor out, Tensor statistics, float scale, "
      "float softcap, float dropout_p, int[] window, bool lower_right, bool allow_tf32, int[] "
      "wanted) "
      "-> Tensor[]");
  m.def(
      "attention_varlen_double_bwd(Tensor? ddquery, Tensor? ddkey, Tensor? ddvalue, Tensor? "
      "ddsink, "
      "Tensor dout, Tensor? dlse, Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor? sink, "
      "Tensor? dropout_seed, Tensor statistics, float scale, float softcap, float dropout_p, "
      "int[] window, bool lower_right, bool allow_tf32, int[] wanted) -> Tensor[]");
  m.def(
      "associate_fwd(Tensor query, Tensor[] keys, Tensor?[] key_lengths, Tensor[] terms, "
      "int[] term_sources, Tensor? query_lengths, Tensor? sink, float scale, float softcap, "
      "int output, SymInt topk, bool for_backward) "
      "-> (Tensor weights, Tensor indices, Tensor statistics)");
  m.def(
      "associate_bwd(Tensor dweights, Tensor query, Tensor[] keys, Tensor?[] key_lengths, "
      "Tensor[] terms, int[] term_sources, Tensor? query_lengths, Tensor? sink, Tensor indices, "
      "Tensor statistics, float scale, float softcap, int output, int[] wanted) -> Tensor[]");
  m.def("weighted_sum_fwd(Tensor weights, Tensor values, Tensor? lengths, Tensor? mask) -> Tensor");
  m.def(
      "weighted_sum_bwd(Tensor dout, Tensor weights, Tensor values, Tensor? lengths, Tensor? mask, "
      "bool wants_dweights, bool wants_dvalues) -> (Tensor, Tensor)");
  m.def(
      "softmax_weighted_sum_fwd(Tensor scores, Tensor values, Tensor? lengths, Tensor? mask, "
      "float scale, bool for_backward) -> (Tensor out, Tensor statistics)");
  m.def(
      "softmax_weighted_sum_bwd(Tensor dout, Tensor scores, Tensor values, Tensor? lengths, "
      "Tensor? mask, Tensor out, Tensor statistics, float scale, bool wants_dscores, "
      "bool wants_dvalues) -> (Tensor, Tensor)");
}

// Each finds the kernels of its tensors' device.
template <class Library>
static void implement(Library& m) {
  m.impl("attention_fwd", TORCH_BOX(&crossmodal::attention_fwd));
  m.impl("attention_plain", TORCH_BOX(&crossmodal::attention_plain));
  m.impl("attention_plain_fwd", TORCH_BOX(&crossmodal::attention_plain_fwd));
  m.impl("attention_plain_bwd", TORCH_BOX(&crossmodal::attention_plain_bwd));
  m.impl("attention_bwd", TORCH_BOX(&crossmodal::attention_bwd));
  m.impl("attention_double_bwd", TORCH_BOX(&crossmodal::attention_double_bwd));
  m.impl("attention_varlen_fwd", TORCH_BOX(&crossmodal::attention_varlen_fwd));
  m.impl("attention_varlen_bwd", TORCH_BOX(&crossmodal::attention_varlen_bwd));
  m.impl("attention_varlen_double_bwd", TORCH_BOX(&crossmodal::attention_varlen_double_bwd));
  m.impl("associate_fwd", TORCH_BOX(&crossmodal::associate_fwd));
  m.impl("associate_bwd", TORCH_BOX(&crossmodal::associate_bwd));
  m.impl("weighted_sum_fwd", TORCH_BOX(&crossmodal::weighted_sum_fwd));
  m.impl("weighted_sum_bwd", TORCH_BOX(&crossmodal::weighted_sum_bwd));
  m.impl("softmax_weighted_sum_fwd", TORCH_BOX(&crossmodal::softmax_weighted_sum_fwd));
  m.impl("softmax_weighted_sum_bwd", TORCH_BOX(&crossmodal::softmax_weighted_sum_bwd));
}

STABLE_TORCH_LIBRARY_IMPL(crossmodal, CPU, m) { implement(m); }

#ifdef CROSSMODAL_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(crossmodal, CUDA, m) { implement(m); }
#endif
