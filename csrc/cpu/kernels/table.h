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

template <class E>
struct Kernels {
  // The products' factor is p.scale where there are no given scores, which no short problem has.
  static bool is_plain(const AttentionProblem& p) {
    return scores_are_plain(p, TermKinds(p), p.scale);
  }
  static size_t attention_fwd_scratch(const AttentionProblem& p, int64_t panel_rows) {
    if (is_short(p, is_plain(p))) return ShortForward<E>(p, nullptr).scratch_bytes();
    return AttentionForward<E>(p, panel_rows, nullptr).scratch_bytes();
  }
  static void attention_fwd(const AttentionProblem& p, int64_t panel_rows, int64_t begin,
                            int64_t end, char* scratch) {
    if (is_short(p, is_plain(p))) return ShortForward<E>(p, scratch).run(begin, end);
    AttentionForward<E>(p, panel_rows, scratch).run(begin, end);
  }
  static size_t attention_bwd_scratch(const AttentionProblem& p, const AttentionBackward& g) {
    if (is_short_backward(p, g, is_plain(p)))
      return ShortBackward<E>(p, g, nullptr).scratch_bytes();
    if (is_few_backward(p, g, is_plain(p))) return FewBackward<E>(p, g, nullptr).scratch_bytes();
    return AttentionBackwardTask<E>(p, g, nullptr).scratch_bytes();
  }
  static void attention_bwd(const AttentionProblem& p, const AttentionBackward& g, int64_t partial,
                            int64_t begin, int64_t end, char* scratch) {
    if (is_short_backward(p, g, is_plain(p)))
      return ShortBackward<E>(p, g, scratch).run(begin, end);
    if (is_few_backward(p, g, is_plain(p))) return FewBackward<E>(p, g, scratch).run(begin, end);
    AttentionBackwardTask<E>(p, g, scratch).run(partial, begin, end);
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
