// The operators on attention problems: attention, attention_varlen, associate,
// softmax_weighted_sum. Python has checked shapes, dtypes and values; what could read out of bounds
// is checked again here. `statistics` (2, rows of lse), empty unless a backward follows, holds the
// largest score of each row, then the sums of exponentials relative to it.
#pragma once

#include <tuple>
#include <vector>

#include "torch/attention_problem.h"

namespace crossmodal {

// query (B, H, Lq, D); per source key (B, Hk, Lk, D), value (B, Hk, Lk, Dv), lengths (B,) or none.
// terms: masks and biases as 4-D tensors whose dimensions are 1 or those of (B, H, Lq, Lk);
// term_sources[t] is the source of terms[t]. sink (1 or B, H) of the accumulator's dtype. window:
// keys to the left and right, -1 = open. Returns out (B, H, Lq, Dv), lse (B, H, Lq), mass (B, H,
// Lq, sources) (empty unless wanted) and statistics.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
attention_fwd(const torch::stable::Tensor& query, const TensorList& keys, const TensorList& values,
              const std::vector<OptionalTensor>& key_lengths, const TensorList& terms,
              const std::vector<int64_t>& term_sources, const OptionalTensor& query_lengths,
              const OptionalTensor& sink, const OptionalTensor& dropout_seed, double scale,
              double softcap, double dropout_p, const std::vector<int64_t>& window,
              bool lower_right, bool allow_tf32, bool return_mass, bool for_backward);

// The same of one source without options, for short calls: fewer arguments are fewer conversions.
// out alone; out and statistics; the gradients of query, key and value, an empty tensor where none
// is wanted.
torch::stable::Tensor attention_plain(const torch::stable::Tensor& query,
                                      const torch::stable::Tensor& key,
                                      const torch::stable::Tensor& value, double scale,
                                      bool is_causal, bool allow_tf32);
std::tuple<torch::stable::Tensor, torch::stable::Tensor> attention_plain_fwd(
    const torch::stable::Tensor& query, const torch::stable::Tensor& key,
    const torch::stable::Tensor& value, double scale, bool is_causal, bool allow_tf32);
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> attention_plain_bwd(
    const torch::stable::Tensor& dout, const torch::stable::Tensor& query,
    const torch::stable::Tensor& key, const torch::stable::Tensor& value,
    const torch::stable::Tensor& out, const torch::stable::Tensor& statistics, double scale,
    bool is_causal, bool allow_tf32, bool wants_dquery, bool wants_dkey, bool wants_dvalue);

// wanted: one flag for query, then for each key, each value, each term, and the sink. Returns as
// many gradients in that order, an empty tensor where none was wanted.
TensorList attention_bwd(const torch::stable::Tensor& dout, const OptionalTensor& dlse,
                         const OptionalTensor& dmass, const torch::stable::Tensor& query,
                         const TensorList& keys, const TensorList& values,
                         const std::vector<OptionalTensor>& key_lengths, const TensorList& terms,
                         const std::vector<int64_t>& term_sources,
                         const OptionalTensor& query_lengths, const OptionalTensor& sink,
                         const OptionalTensor& dropout_seed, const torch::stable::Tensor& out,
                         const torch::stable::Tensor& statistics, const torch::stable::Tensor& mass,
                         double scale, double softcap, double dropout_p,
                         const std::vector<int64_t>& window, bool lower_right, bool allow_tf32,
                         const std::vector<int64_t>& wanted);

// The backward of attention_bwd. `dd*` is what flows back to its gradients, in their shapes and
// dtypes, or none. wanted: one flag for dout, dlse, dmass, then as attention_bwd. Returns as many
// gradients in that order.
TensorList attention_double_bwd(
    const OptionalTensor& ddquery, const std::vector<OptionalTensor>& ddkeys,
    const std::vector<OptionalTensor>& ddvalues, const std::vector<OptionalTensor>& ddterms,
    const OptionalTensor& ddsink, const torch::stable::Tensor& dout, const OptionalTensor& dlse,
    const OptionalTensor& dmass, const torch::stable::Tensor& query, const TensorList& keys,
    const TensorList& values, const std::vector<OptionalTensor>& key_lengths,
    const TensorList& terms, const std::vector<int64_t>& term_sources,
    const OptionalTensor& query_lengths, const OptionalTensor& sink,
    const OptionalTensor& dropout_seed, const torch::stable::Tensor& statistics, double scale,
    double softcap, double dropout_p, const std::vector<int64_t>& window, bool lower_right,
    bool allow_tf32, const std::vector<int64_t>& wanted);

// query (total_q, H, D), key (total_k, Hk, D), value (total_k, Hk, Dv), cu_seqlens (B + 1,) int32.
// Returns out (total_q, H, Dv), lse (H, total_q) and statistics.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
attention_varlen_fwd(const torch::stable::Tensor& query, const torch::stable::Tensor& key,
                     const torch::stable::Tensor& value, const torch::stable::Tensor& cu_seqlens_q,
                     const torch::stable::Tensor& cu_seqlens_k, int64_t max_seqlen_q,
                     int64_t max_seqlen_k, const OptionalTensor& sink,
                     const OptionalTensor& dropout_seed, double scale, double softcap,
                     double dropout_p, const std::vector<int64_t>& window, bool lower_right,
                     bool allow_tf32, bool for_backward);

// wanted and the gradients: query, key, value, sink.
TensorList attention_varlen_bwd(
    const torch::stable::Tensor& dout, const OptionalTensor& dlse,
    const torch::stable::Tensor& query, const torch::stable::Tensor& key,
    const torch::stable::Tensor& value, const torch::stable::Tensor& cu_seqlens_q,
    const torch::stable::Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
    const OptionalTensor& sink, const OptionalTensor& dropout_seed,
    const torch::stable::Tensor& out, const torch::stable::Tensor& statistics, double scale,
    double softcap, double dropout_p, const std::vector<int64_t>& window, bool lower_right,
    bool allow_tf32, const std::vector<int64_t>& wanted);

// The backward of attention_varlen_bwd, as attention_double_bwd; wanted begins with dout and dlse.
TensorList attention_varlen_double_bwd(
    const OptionalTensor& ddquery, const OptionalTensor& ddkey, const OptionalTensor& ddvalue,
    const OptionalTensor& ddsink, const torch::stable::Tensor& dout, const OptionalTensor& dlse,
    const torch::stable::Tensor& query, const torch::stable::Tensor& key,
    const torch::stable::Tensor& value, const torch::stable::Tensor& cu_seqlens_q,
    const torch::stable::Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
    const OptionalTensor& sink, const OptionalTensor& dropout_seed,
    const torch::stable::Tensor& statistics, double scale, double softcap, double dropout_p,
    const std::vector<int64_t>& window, bool lower_right, bool allow_tf32,
    const std::vector<int64_t>& wanted);

// output: 0 all weights (B, H, Lq, keys), 1 their mean over heads (B, Lq, keys), 2 the topk
// strongest (B, H, Lq, topk) with their indices, 3 their total over queries (B, H, keys), 4 their
// entropy (B, H, Lq). The second result is empty but for 2, the third holds statistics.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> associate_fwd(
    const torch::stable::Tensor& query, const TensorList& keys,
    const std::vector<OptionalTensor>& key_lengths, const TensorList& terms,
    const std::vector<int64_t>& term_sources, const OptionalTensor& query_lengths,
    const OptionalTensor& sink, double scale, double softcap, int64_t output, int64_t topk,
    bool for_backward);

// wanted and the gradients: query, each key, each term, sink.
TensorList associate_bwd(const torch::stable::Tensor& dweights, const torch::stable::Tensor& query,
                         const TensorList& keys, const std::vector<OptionalTensor>& key_lengths,
                         const TensorList& terms, const std::vector<int64_t>& term_sources,
                         const OptionalTensor& query_lengths, const OptionalTensor& sink,
                         const torch::stable::Tensor& indices,
                         const torch::stable::Tensor& statistics, double scale, double softcap,
                         int64_t output, const std::vector<int64_t>& wanted);

// scores (B, H, Lq, Lk), values (B, H, Lk, D), lengths (B,), mask (B, H, Lq, Lk) bool. Returns out
// (B, H, Lq, D) and statistics.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> softmax_weighted_sum_fwd(
    const torch::stable::Tensor& scores, const torch::stable::Tensor& values,
    const OptionalTensor& lengths, const OptionalTensor& mask, double scale, bool for_backward);

// dscores and dvalues; an empty tensor where none is wanted.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> softmax_weighted_sum_bwd(
    const torch::stable::Tensor& dout, const torch::stable::Tensor& scores,
    const torch::stable::Tensor& values, const OptionalTensor& lengths, const OptionalTensor& mask,
    const torch::stable::Tensor& out, const torch::stable::Tensor& statistics, double scale,
    bool wants_dscores, bool wants_dvalues);

}  // namespace crossmodal
