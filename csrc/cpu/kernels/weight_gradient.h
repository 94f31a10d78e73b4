// The gradient that reaches the weights themselves when a summary of them, not a fused output, was
// returned: dW of one query against a stretch of visible keys, from the summary's gradient.
#pragma once

#include <cstdint>

#include "cpu/kernels/rows.h"
#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class V>
class WeightGradient {
  using Acc = typename V::Scalar;

 public:
  WeightGradient(const AttentionProblem& p, const AssociateGradient* gradient)
      : p_(p), g_(gradient) {}

  // out[x] = d loss / d w_ij for the keys seen of the chunk that begins at k_begin. `weights` are
  // this query's, of which only entropy's gradient depends: -(log w + 1).
  void fill(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, int64_t k_begin, Range seen,
            const Acc* weights, Acc* out) const {
    const int64_t row = row_index(p_, b, h, i);
    const Acc* dweights = static_cast<const Acc*>(g_->dweights);
    switch (g_->output) {
      case AssociateOutput::kWeights:
        return gather(keys, k_begin, seen, dweights + row * p_.total_keys, Acc(1), out);
      case AssociateOutput::kHeadMean:
        return gather(keys, k_begin, seen, dweights + (b * p_.seqlen_q + i) * p_.total_keys,
                      Acc(1) / static_cast<Acc>(p_.num_heads), out);
      case AssociateOutput::kKeyTotal:
        return gather(keys, k_begin, seen, dweights + (b * p_.num_heads + h) * p_.total_keys,
                      Acc(1), out);
      case AssociateOutput::kEntropy:
        for (int64_t x = seen.begin; x < seen.end; ++x)
          out[x] = weights[x] > 0 ? -dweights[row] * (logarithm(weights[x]) + 1) : Acc(0);
        return;
      case AssociateOutput::kTopK:
        return scatter_top(keys, k_begin, seen, row, dweights, out);
    }
  }

 private:
  static float logarithm(float x) { return __builtin_logf(x); }
  static double logarithm(double x) { return __builtin_log(x); }

  void gather(const VisibleKeys& keys, int64_t k_begin, Range seen, const Acc* dweights, Acc factor,
              Acc* out) const {
    each_source(keys, k_begin, seen,
                [&](int64_t offset, int64_t from, int64_t to, bool contiguous) {
                  const Acc* source = dweights + offset;
                  Acc* row = out + (from - k_begin);
                  if (contiguous) {
                    source += keys.rows[from];
                    for (int64_t x = 0; x < to - from; ++x) row[x] = factor * source[x];
                  } else {
                    for (int64_t x = 0; x < to - from; ++x)
                      row[x] = factor * source[keys.rows[from + x]];
                  }
                });
  }

  void scatter_top(const VisibleKeys& keys, int64_t k_begin, Range seen, int64_t row,
                   const Acc* dweights, Acc* out) const {
    for (int64_t x = seen.begin; x < seen.end; ++x) out[x] = 0;
    for (int64_t t = row * g_->topk; t < (row + 1) * g_->topk; ++t) {
      const int64_t wanted = g_->indices[t];
      if (wanted < 0) continue;
      each_source(keys, k_begin, seen, [&](int64_t offset, int64_t from, int64_t to, bool) {
        int64_t low = from, high = to;  // the first key at or after the one wanted
        while (low < high) {
          const int64_t middle = (low + high) / 2;
          if (offset + keys.rows[middle] < wanted) {
            low = middle + 1;
          } else {
            high = middle;
          }
        }
        if (low < to && offset + keys.rows[low] == wanted) out[low - k_begin] = dweights[t];
      });
    }
  }

  // fn(the source's offset in the concatenation, from, to, contiguous) for each source among the
  // keys seen.
  template <class Fn>
  void each_source(const VisibleKeys& keys, int64_t k_begin, Range seen, Fn fn) const {
    int64_t offset = 0;
    int last = 0;
    for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       for (; last < s; ++last) offset += p_.sources[last].seqlen_k;
                       fn(offset, from, to, contiguous);
                     });
  }

  const AttentionProblem& p_;
  const AssociateGradient* g_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
