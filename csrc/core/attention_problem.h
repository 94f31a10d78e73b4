// One attention problem, forward and backward, as kernels see it: a list of key/value sources under
// a joint softmax. `attention` is the case of one source. No tensor, no torch; strides count
// elements and may be 0 (broadcast).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace crossmodal {

enum class TermType : int { kBool, kFloat32, kBFloat16, kFloat16, kFloat64 };

// A mask or bias of one source. Bool gates the key (non-zero = attend); float is added to the
// scaled score, -inf hides.
struct ScoreTerm {
  const void* data;  // [batch, num_heads, seqlen_q, seqlen_k] through stride
  TermType type;
  int64_t stride[4];  // 0 where the term broadcasts

  void* grad;              // accumulator, or null: no gradient wanted
  bool grad_is_double;     // else float. Long sums, over queries or keys, need the width
  int64_t grad_stride[4];  // 0 where the term broadcasts
  int64_t grad_size;  // elements of one accumulator; AttentionBackward::num_partials of them follow
                      // each other
};

constexpr int kMaxTerms = 2;

struct KeySource {
  const void* k;        // [batch, num_heads, seqlen_k, head_dim], last stride 1
  const void* v;        // [batch, num_heads, seqlen_k, head_dim_v], last stride 1
  int64_t k_stride[3];  // batch, head, row
  int64_t v_stride[3];
  int64_t seqlen_k;
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
  double scale;
  bool is_causal;  // query i sees keys j <= i of the padded concatenation
  DType dtype;

  // The accumulator type is float, double for kFloat64.
  void* out;  // [batch, num_heads, seqlen_q, head_dim_v] of dtype
  int64_t out_stride[3];
  void* lse;  // [batch, num_heads, seqlen_q] of the accumulator type, contiguous, natural log; may
              // be null
  void* row_top;  // [batch, num_heads, seqlen_q], largest score of a row, and row_sum, the sum of
                  // exponentials
  void* row_sum;  // relative to it, 0 where nothing is visible: what backward rebuilds the weights
                  // from. lse alone would lose the sum beside a large score (finfo.min in a mask).
                  // Null if not wanted
  void* mass;  // [batch, num_heads, seqlen_q, num_sources] of the accumulator type, contiguous; may
               // be null
};

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
  int64_t num_partials;  // accumulators of each term's gradient, to be added up in order
                         // afterwards; at least 1
};

// What attended to what: the weights themselves, or their summaries. Values of the sources are not
// read.
enum class AssociateOutput : int { kWeights, kHeadMean, kTopK };

struct AssociateProblem {
  AssociateOutput output;
  void* weights;  // kWeights [batch, num_heads, seqlen_q, total_keys]; kHeadMean [batch, seqlen_q,
                  // total_keys]; kTopK [batch, num_heads, seqlen_q, topk]; accumulator type,
                  // contiguous
  int64_t* indices;  // kTopK: [batch, num_heads, seqlen_q, topk], -1 where fewer keys are visible
  int64_t topk;
};

}  // namespace crossmodal
