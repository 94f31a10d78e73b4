// Every operator's schema and registration, nothing else.
#include <torch/csrc/stable/library.h>

#include "torch/attention.h"
#include "torch/weighted_sum.h"

STABLE_TORCH_LIBRARY(crossmodal, m) {
  m.def(
      "attention_fwd(Tensor query, Tensor[] keys, Tensor[] values, Tensor?[] lengths, Tensor[] "
      "terms, "
      "int[] term_sources, bool is_causal, float scale, bool return_mass, bool for_backward) "
      "-> (Tensor out, Tensor lse, Tensor mass, Tensor statistics)");
  m.def(
      "attention_bwd(Tensor dout, Tensor? dlse, Tensor? dmass, Tensor query, Tensor[] keys, "
      "Tensor[] values, Tensor?[] lengths, Tensor[] terms, int[] term_sources, Tensor out, "
      "Tensor statistics, Tensor mass, bool is_causal, float scale, int[] wanted) -> Tensor[]");
  m.def(
      "associate(Tensor query, Tensor[] keys, Tensor?[] lengths, Tensor[] terms, int[] "
      "term_sources, float scale, "
      "int output, int topk) -> (Tensor, Tensor)");
  m.def("weighted_sum_fwd(Tensor weights, Tensor values, Tensor? lengths, Tensor? mask) -> Tensor");
  m.def(
      "weighted_sum_bwd(Tensor dout, Tensor weights, Tensor values, Tensor? lengths, Tensor? mask, "
      "bool wants_dweights, bool wants_dvalues) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(crossmodal, CPU, m) {
  m.impl("attention_fwd", TORCH_BOX(&crossmodal::attention_fwd_cpu));
  m.impl("attention_bwd", TORCH_BOX(&crossmodal::attention_bwd_cpu));
  m.impl("associate", TORCH_BOX(&crossmodal::associate_cpu));
  m.impl("weighted_sum_fwd", TORCH_BOX(&crossmodal::weighted_sum_fwd_cpu));
  m.impl("weighted_sum_bwd", TORCH_BOX(&crossmodal::weighted_sum_bwd_cpu));
}

#ifdef CROSSMODAL_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(crossmodal, CUDA, m) {
  m.impl("weighted_sum_fwd", TORCH_BOX(&crossmodal::weighted_sum_fwd_cuda));
}
#endif
