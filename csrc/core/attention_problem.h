// One attention problem, forward and backward, as kernels see it: a list of key/value sources under
// a joint softmax. `attention` is the case of one source, `attention_varlen` that of packed rows,
// `softmax_weighted_sum` that of no features and the scores as a term. No tensor, no torch; strides
// count elements and may be 0 (broadcast).
//
//   s_ij = softcap(scale * <q_i, k_j>) + terms,   w_ij = exp(s_ij) / (sum_j' exp(s_ij') +
//   exp(sink))
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace crossmodal {

enum class TermType : int { kBool, kFloat32, kBFloat16, kFloat16, kFloat64 };

// A mask or bias of one source. Bool gates the key (non-zero = attend); float, times factor, is
// added to the scaled score, -inf hides.
struct ScoreTerm {
  const void* data;  // [batch, num_heads, seqlen_q, seqlen_k] through stride
  TermType type;
  double factor;
  int64_t stride[4];  // 0 where the term broadcasts

  void* grad;              // accumulator, or null: no gradient wanted
  bool grad_is_double;     // else float. Long sums, over queries or keys, need the width
  int64_t grad_stride[4];  // 0 where the term broadcasts
  int64_t grad_size;  // elements of one accumulator; AttentionBackward::num_partials of them follow
                      // each other

  // Or, of a term that is the scores themselves: its gradient [batch, num_heads, seqlen_q,
  // seqlen_k] of dtype, contiguous, every element of which is written; null if not wanted.
  void* dscores;
};

constexpr int kMaxTerms = 2;

struct KeySource {
  const void* k;        // [batch, num_heads_k, seqlen_k, head_dim], last stride 1
  const void* v;        // [batch, num_heads_k, seqlen_k, head_dim_v], last stride 1
  int64_t k_stride[3];  // batch, head, row
  int64_t v_stride[3];
  int64_t
      num_heads_k;   // divides num_heads: key head h serves num_heads / num_heads_k queries' heads
  int64_t seqlen_k;  // packed: the longest sequence
  // Packed rows: null, or [batch + 1] ascending; sample b has rows [cu_seqlens[b], cu_seqlens[b +
  // 1]), its first seqlen_k at most, of k [total_k, num_heads_k, head_dim], whose batch stride is
  // 0.
  const int32_t* cu_seqlens;
  int64_t total_k;  // packed: rows of k
  const void*
      lengths;  // [batch], keys at or beyond are hidden; null: all keys. Clamped to [0, seqlen_k]
  bool lengths_are_int64;  // else int32
  int num_terms;
  ScoreTerm terms[kMaxTerms];

  void* dk;  // as k and v, same dtype; every element is written; null in forward or when not wanted
  void* dv;
  int64_t dk_stride[3];
  int64_t dv_stride[3];
};

struct AttentionProblem {
  const void* q;        // [batch, num_heads, seqlen_q, head_dim], last stride 1
  int64_t q_stride[3];  // batch, head, row
  const KeySource* sources;
  int num_sources;
  int64_t batch, num_heads, seqlen_q, head_dim, head_dim_v;
  int64_t total_keys;  // sum of seqlen_k
  // A key that dense terms hide from every query of (b, h) is not read either; costs a look at the
  // terms.
  bool skips_unseen_keys;
  // Rows at or beyond a sample's length see nothing: [batch], clamped to [0, seqlen_q], or null.
  const void* query_lengths;
  bool query_lengths_are_int64;  // else int32
  // Packed rows, as KeySource::cu_seqlens; q, out and their gradients are [total_q, num_heads,
  // width], and seqlen_q is the longest sequence.
  const int32_t* cu_seqlens_q;
  int64_t total_q;

  double scale;
  double softcap;  // c > 0: c * tanh(s / c) of the scaled score; 0: off
  // Query i sees keys [i - left, i + right], -1 = open; lower_right shifts i by the sample's key
  // length minus its query length. Only with one source.
  int64_t window_left, window_right;
  bool lower_right;
  const void* sink;     // [batch or 1, num_heads] of the accumulator type, or null
  int64_t sink_stride;  // from sample to sample

  // Weights are dropped after lse and mass are formed, the kept ones divided by 1 - p.
  // Philox4x32-10 (Salmon et al., 2011), key = the seed's words, counter = (i, j / 4, b * num_heads
  // + h, 0), word j % 4; j counts along the padded concatenation. Kept if word >= floor(p * 2^32).
  double dropout_p;             // 0: off
  const int64_t* dropout_seed;  // one; null without dropout
  DType dtype;
  // Products of floats may round their factors to 10 bits, where a device has instructions for it.
  bool allow_tf32;

  // The accumulator type is float, double for kFloat64.
  void* out;  // [batch, num_heads, seqlen_q, head_dim_v] of dtype
  int64_t out_stride[3];
  void* lse;  // [batch, num_heads, seqlen_q], packed [num_heads, total_q], of the accumulator type,
              // contiguous, natural log; may be null
  void* row_top;  // as lse: largest score of a row, sink included, and row_sum, the sum of
                  // exponentials
  void* row_sum;  // relative to it: what backward rebuilds the weights from. lse alone would lose
                  // the sum beside a large score (finfo.min in a mask). A query that sees no key
                  // has sum 0, and the sink, or -inf, for its top. Null if not wanted
  void* mass;  // [batch, num_heads, seqlen_q, num_sources] of the accumulator type, contiguous; may
               // be null
};

struct AssociateGradient;

// What backward needs beside the forward problem, whose out, row_top, row_sum and mass are then
// inputs.
struct AttentionBackward {
  const void* dout;  // [batch, num_heads, seqlen_q, head_dim_v] of dtype, last stride 1
  int64_t dout_stride[3];
  const void*
      dlse;  // [batch, num_heads, seqlen_q] of the accumulator type, contiguous; may be null
  const void* dmass;  // [batch, num_heads, seqlen_q, num_sources], likewise
  void* dq;           // as q, same dtype
  int64_t dq_stride[3];
  double* dsink;  // [batch, num_heads], to be summed over samples; or null
  // Not null: the gradient flows in through the weights, dout and values take no part.
  const AssociateGradient* associate;
  int64_t num_partials;  // accumulators of each term's gradient, to be added up in order
                         // afterwards; at least 1
};

// What attended to what: the weights themselves, or their summaries. Values of the sources are not
// read. Keys count along the padded concatenation.
enum class AssociateOutput : int { kWeights, kHeadMean, kTopK, kKeyTotal, kEntropy };

struct AssociateProblem {
  AssociateOutput output;
  void* weights;  // kWeights [batch, num_heads, seqlen_q, total_keys]; kHeadMean [batch, seqlen_q,
                  // total_keys]; kTopK [batch, num_heads, seqlen_q, topk]; kKeyTotal [batch,
                  // num_heads, total_keys]; kEntropy [batch, num_heads, seqlen_q], nats;
                  // accumulator type, contiguous
  int64_t* indices;  // kTopK: [batch, num_heads, seqlen_q, topk], -1 where fewer keys are visible
  int64_t topk;
};

struct AssociateGradient {
  AssociateOutput output;
  const void* dweights;    // as AssociateProblem::weights
  const int64_t* indices;  // kTopK
  int64_t topk;
};

}  // namespace crossmodal
