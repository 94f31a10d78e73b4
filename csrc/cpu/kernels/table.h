// Instantiates every kernel for the instruction set that includes this file, and makes its table.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/associate.h"
#include "cpu/kernels/attention_bwd.h"
#include "cpu/kernels/attention_double_bwd.h"
#include "cpu/kernels/attention_fwd.h"
#include "cpu/kernels/few_backward.h"
#include "cpu/kernels/peak.h"
#include "cpu/kernels/short_backward.h"
#include "cpu/kernels/short_forward.h"
#include "cpu/kernels/weighted_sum.h"
#include "cpu/kernels/weighted_sum_bwd.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

constexpr size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Calls fn(way, begin, end) for runs of pairs (batch, head) of [begin, end) whose samples go the
// same way_of(sample).
template <class WayOf, class Fn>
void for_each_run(const AttentionProblem& p, int64_t begin, int64_t end, WayOf way_of, Fn fn) {
  while (begin < end) {
    const auto way = way_of(begin / p.num_heads);
    int64_t next = begin;
    do {
      next = min_of(end, (next / p.num_heads + 1) * p.num_heads);
    } while (next < end && way_of(next / p.num_heads) == way);
    fn(way, begin, next);
    begin = next;
  }
}

template <class E>
struct Kernels {
  // The products' factor is p.scale where there are no given scores, which no short problem has.
  static bool is_plain(const AttentionProblem& p) {
    return scores_are_plain(p, TermKinds(p), p.scale);
  }
  static bool may_be_short_backward(const AttentionProblem& p, const AttentionBackward& g) {
    return may_be_short(p, is_plain(p)) && has_simple_gradients(p, g);
  }
  static size_t attention_fwd_scratch(const AttentionProblem& p, int64_t panel_rows) {
    const size_t bytes = AttentionForward<E>(p, panel_rows, nullptr).scratch_bytes();
    if (!may_be_short(p, is_plain(p))) return bytes;
    return larger(bytes, ShortForward<E>(p, nullptr).scratch_bytes());
  }
  static void attention_fwd(const AttentionProblem& p, int64_t panel_rows, int64_t begin,
                            int64_t end, char* scratch) {
    if (!may_be_short(p, is_plain(p)))
      return AttentionForward<E>(p, panel_rows, scratch).run(begin, end);
    // One panel holds so few queries: an item is a pair.
    for_each_run(
        p, begin, end, [&](int64_t b) { return count_keys(p, b) <= kShortKeys; },
        [&](bool is_short, int64_t from, int64_t to) {
          if (is_short) return ShortForward<E>(p, scratch).run(from, to);
          AttentionForward<E>(p, panel_rows, scratch).run(from, to);
        });
  }
  static size_t attention_bwd_scratch(const AttentionProblem& p, const AttentionBackward& g) {
    size_t bytes = AttentionBackwardTask<E>(p, g, nullptr).scratch_bytes();
    if (may_be_short_backward(p, g))
      bytes = larger(bytes, ShortBackward<E>(p, g, nullptr).scratch_bytes());
    if (may_be_few_backward(p, g, is_plain(p)))
      bytes = larger(bytes, FewBackward<E>(p, g, nullptr).scratch_bytes());
    return bytes;
  }
  static void attention_bwd(const AttentionProblem& p, const AttentionBackward& g, int64_t partial,
                            int64_t begin, int64_t end, char* scratch) {
    const bool may_be_short = may_be_short_backward(p, g);
    const bool may_be_few = may_be_few_backward(p, g, is_plain(p));
    enum class Way { kShort, kFew, kGeneral };
    for_each_run(
        p, begin, end,
        [&](int64_t b) {
          const int64_t keys = may_be_short || may_be_few ? count_keys(p, b) : 0;
          if (may_be_short && keys <= kShortKeys) return Way::kShort;
          return may_be_few && keys <= kFewBackwardKeys ? Way::kFew : Way::kGeneral;
        },
        [&](Way way, int64_t from, int64_t to) {
          if (way == Way::kShort) return ShortBackward<E>(p, g, scratch).run(from, to);
          if (way == Way::kFew) return FewBackward<E>(p, g, scratch).run(from, to);
          AttentionBackwardTask<E>(p, g, scratch).run(partial, from, to);
        });
  }
  static size_t attention_double_bwd_scratch(const AttentionProblem& p,
                                             const AttentionDoubleBackward& g) {
    return AttentionDoubleBackwardTask<E>(p, g, nullptr).scratch_bytes();
  }
  static void attention_double_bwd(const AttentionProblem& p, const AttentionDoubleBackward& g,
                                   int64_t partial, int64_t begin, int64_t end, char* scratch) {
    AttentionDoubleBackwardTask<E>(p, g, scratch).run(partial, begin, end);
  }
  static size_t associate_scratch(const AttentionProblem& p, const AssociateProblem& a) {
    return Associate<E>(p, a, nullptr).scratch_bytes();
  }
  static void associate(const AttentionProblem& p, const AssociateProblem& a, int64_t b, int64_t h,
                        int64_t q_begin, int64_t q_end, char* scratch) {
    Associate<E>(p, a, scratch).run(b, h, q_begin, q_end);
  }
  static size_t weighted_sum_fwd_scratch(const WeightedSumProblem& w, int64_t panel_rows) {
    return WeightedSumForward<E>(w, panel_rows, nullptr).scratch_bytes();
  }
  static void weighted_sum_fwd(const WeightedSumProblem& w, int64_t panel_rows, int64_t begin,
                               int64_t end, char* scratch) {
    WeightedSumForward<E>(w, panel_rows, scratch).run(begin, end);
  }
  static size_t weighted_sum_bwd_scratch(const WeightedSumProblem& w,
                                         const WeightedSumBackward& g) {
    return WeightedSumBackwardTask<E>(w, g, nullptr).scratch_bytes();
  }
  static void weighted_sum_bwd(const WeightedSumProblem& w, const WeightedSumBackward& g,
                               int64_t begin, int64_t end, char* scratch) {
    WeightedSumBackwardTask<E>(w, g, scratch).run(begin, end);
  }

  static constexpr const char* multiply() {
    if (E::kPerWord == 2) return "pairs of bfloat16 by vdpbf16ps";
    return sizeof(typename E::Element) < sizeof(typename E::Acc)
               ? "widened to float32, fused multiply-add"
               : "fused multiply-add";
  }
  static constexpr DTypeKernels table() {
    return {attention_fwd_scratch,
            attention_fwd,
            attention_bwd_scratch,
            attention_bwd,
            attention_double_bwd_scratch,
            attention_double_bwd,
            associate_scratch,
            associate,
            weighted_sum_fwd_scratch,
            weighted_sum_fwd,
            weighted_sum_bwd_scratch,
            weighted_sum_bwd,
            multiply_in_registers<E>,
            multiply(),
            E::Vec::kLanes,
            max_tile_rows(kMaxTileVectors),
            kMaxTileVectors,
            kForwardBlockM,
            kForwardBlockN};
  }
};

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {Kernels<F32Engine>::table(), Kernels<Bf16Engine>::table(),
                            Kernels<F16Engine>::table(), Kernels<F64Engine>::table(), read_memory};

}  // namespace crossmodal::cpu::CROSSMODAL_ISA
