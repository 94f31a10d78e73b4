// The backward of backward: what gradient penalties and Hessian products ask for. It differentiates
// the sums that backward returns, (dQ, dK, dV, ...), along with what flows back to each of them, by
// everything that backward was given.
#pragma once

#include "core/attention_problem.h"

namespace crossmodal {

// Rows of dtype in the layout of a tensor of the problem, last stride 1. Null: nothing flows there.
struct RowsLike {
  const void* data;
  int64_t stride[3];  // batch, head, row
};

// What flows back to the gradients of one source.
struct SourceCotangents {
  RowsLike ddk;  // as k, and ddv as v
  RowsLike ddv;
  ScoreTerm ddterms[kMaxTerms];  // in the shape of the terms; data null: nothing flows there
};

// Beside the problem, whose row_top and row_sum are inputs, and whose sources say where the
// gradients of keys and values (dk, dv) and of terms (grad) go.
struct AttentionDoubleBackward {
  RowsLike dout;      // what backward was given, as there
  const void* dlse;   // [batch, num_heads, seqlen_q] of the accumulator type, contiguous, or null
  const void* dmass;  // [batch, num_heads, seqlen_q, num_sources], likewise

  RowsLike ddq;  // as q
  const SourceCotangents* sources;
  const void* ddsink;  // [batch or 1, num_heads] of the accumulator type, or null
  int64_t ddsink_stride;

  void*
      ddout;  // the gradient of dout, as out; ddlse and ddmass as dlse and dmass. Null: not wanted
  int64_t ddout_stride[3];
  void* ddlse;
  void* ddmass;
  void* dq;  // as q
  int64_t dq_stride[3];
  double* dsink;         // [batch, num_heads], to be summed over samples; or null
  int64_t num_partials;  // as AttentionBackward's
};

}  // namespace crossmodal
