// Problems whose queries and keys are so few that what is done once per (batch, head) counts: one
// source, every query sees every key of its sample, and scores are plain.
//
// Queries lie in the lanes of vectors, that is, S^T = K Q^T is formed: maxima and sums over keys
// need no transpose and no reduction, and of all operands only Q (in backward also dout) is packed;
// float keys and values are read, and their gradients written, where they stand.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/arena.h"
#include "cpu/kernels/block_operands.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/sample.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Beyond, packing keys once for many queries is the better way.
constexpr int64_t kShortQueries = 64;
constexpr int64_t kShortKeys = 64;

// `plain` as scores_are_plain() says.
inline bool is_short(const AttentionProblem& p, bool plain) {
  return plain && p.num_sources == 1 && p.sources[0].num_terms == 0 && p.window_left < 0 &&
         p.window_right < 0 && p.dropout_p == 0 && !p.mass && p.head_dim > 0 && p.head_dim_v > 0 &&
         p.seqlen_q > kFewQueries && p.seqlen_q <= kShortQueries && p.total_keys <= kShortKeys;
}

// Neighbouring rows of a tensor.
template <class T>
struct RowsOf {
  T* first;
  int64_t stride, count, width;

  T* operator[](int64_t i) const { return first + i * stride; }
};

// Rows as the micro-kernel reads them, packed only if it must be.
template <class E>
class ShortOperands {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Word = typename E::Word;

 public:
  explicit ShortOperands(Arena* arena) : list_(arena->take<const T*>(kMost)) {}

  static int64_t words_along(int64_t rows, int64_t width) { return rows * words_for<E>(width); }
  static int64_t words_across(int64_t rows, int64_t width) {
    return words_for<E>(rows) * round_up(width, V::kLanes);
  }
  static int64_t words_transposed(int64_t rows, int64_t width) {
    return words_for<E>(width) * round_up(rows, V::kLanes);
  }

  // Summed over the width; `in_place` as rows_are_words_of() says.
  OperandA<E> along(RowsOf<const T> rows, bool in_place, Word* packed) const {
    if (in_place) return {reinterpret_cast<const Word*>(rows.first), rows.stride / E::kPerWord, 1};
    const int64_t words = words_for<E>(rows.width);
    pack_along_row<E>(list(rows), rows.count, rows.width, packed, words);
    return {packed, words, 1};
  }
  OperandB<E> transposed(RowsOf<const T> rows, Word* packed) const {
    pack_transposed<E>(list(rows), rows.count, rows.width, packed);
    return {packed, true, 0};
  }
  // Summed over the rows.
  OperandB<E> across(RowsOf<const T> rows, Word* packed) const {
    if (rows_are_vectors_of<E>(rows.width))
      return {reinterpret_cast<const Word*>(rows.first), false, rows.stride};
    const int64_t ld = round_up(rows.width, V::kLanes);
    pack_across_rows<E>(list(rows), rows.count, rows.width, packed, ld);
    return {packed, false, ld};
  }

 private:
  static constexpr int64_t kMost = max_of(kShortQueries, kShortKeys);

  const T* const* list(RowsOf<const T> rows) const {
    for (int64_t i = 0; i < rows.count; ++i) list_[i] = rows[i];
    return list_;
  }

  const T** list_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
