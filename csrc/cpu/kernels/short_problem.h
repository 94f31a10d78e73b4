// Problems whose queries and keys are so few that what is done once per (batch, head) counts: every
// query sees every key of its sample, and scores are plain.
//
// Queries lie in the lanes of vectors, that is, S^T = K Q^T is formed: maxima and sums over keys
// need no transpose and no reduction, and of all operands only Q (in backward also dout) has to be
// packed; float keys are read, and all gradients written, where they stand. Sources follow each
// other along the keys.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/arena.h"
#include "cpu/kernels/block_operands.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/packing.h"
#include "cpu/kernels/sample.h"
#include "cpu/kernels/score_terms.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Up to here too many lanes would be empty.
constexpr int64_t kLaneQueries = 2;
// Beyond, packing keys once for many queries is the better way.
constexpr int64_t kShortQueries = 64;
constexpr int64_t kShortKeys = 64;

// Whether samples with few keys are short; `plain` as scores_are_plain() says. Nothing that differs
// between forward and backward counts: both must form the same products.
inline bool may_be_short(const AttentionProblem& p, bool plain) {
  if (!plain || p.window_left >= 0 || p.window_right >= 0 || p.dropout_p > 0 || p.head_dim == 0 ||
      p.head_dim_v == 0 || p.seqlen_q <= kLaneQueries || p.seqlen_q > kShortQueries)
    return false;
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.sources[s];
    if (source.seqlen_k == 0) continue;  // terms have no element
    for (int t = 0; t < source.num_terms; ++t)
      if (!hides_nothing(source.terms[t])) return false;
  }
  return true;
}

// Keys of a sample by lengths, over all sources. They choose the kernel, not the keys that there is
// room for: a source that is not there and one of length 0 give the same bits.
inline int64_t count_keys(const AttentionProblem& p, int64_t b) {
  int64_t count = 0;
  for (int s = 0; s < p.num_sources; ++s) count += key_rows_of(p.sources[s], b).count;
  return count;
}

inline bool is_short(const AttentionProblem& p, bool plain, int64_t b) {
  return may_be_short(p, plain) && count_keys(p, b) <= kShortKeys;
}

// Whether products are formed query by query (few_queries.h). Forward and backward must agree:
// backward normalises the scores that it forms with the sums that forward found.
inline bool has_few_queries(const AttentionProblem& p, bool plain, int64_t b) {
  return p.seqlen_q <= kFewQueries && !is_short(p, plain, b);
}

// Neighbouring rows of a tensor.
template <class T>
struct RowsOf {
  T* first;
  int64_t stride, count, width;

  T* operator[](int64_t i) const { return first + i * stride; }
};

// Keys and values that the queries of one (batch, head) see, source by source.
template <class T>
struct VisibleRows {
  RowsOf<const T>*keys, *values;  // [num_sources]
  int64_t count = 0;              // over all sources

  VisibleRows(const AttentionProblem& p, Arena* arena)
      : keys(arena->take<RowsOf<const T>>(p.num_sources)),
        values(arena->take<RowsOf<const T>>(p.num_sources)) {}

  void find(const AttentionProblem& p, int64_t b, int64_t h) {
    count = 0;
    for (int s = 0; s < p.num_sources; ++s) {
      const KeySource& source = p.sources[s];
      const Rows rows = key_rows_of(source, b);
      const int64_t head = key_head(p, source, h);
      keys[s] = {row_at<const T>(source.k, source.k_stride, b, head, rows.first),
                 source.k_stride[2], rows.count, p.head_dim};
      values[s] = {row_at<const T>(source.v, source.v_stride, b, head, rows.first),
                   source.v_stride[2], rows.count, p.head_dim_v};
      count += rows.count;
    }
  }
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

  // Summed over the width; `stride` of the tensor.
  OperandA<E> along(RowsOf<const T> rows, const int64_t* stride, Word* packed) const {
    if (rows_are_words_of<E>(rows.first, stride, rows.width))
      return {reinterpret_cast<const Word*>(rows.first), rows.stride / E::kPerWord, 1};
    const int64_t words = words_for<E>(rows.width);
    list(rows);
    pack_along_row<E>(list_, rows.count, rows.width, packed, words);
    return {packed, words, 1};
  }
  OperandB<E> transposed(RowsOf<const T> rows, Word* packed) const {
    list(rows);
    pack_transposed<E>(list_, rows.count, rows.width, packed);
    return {packed, true, 0};
  }
  // Summed over the rows.
  OperandB<E> across(RowsOf<const T> rows, Word* packed) const { return across(&rows, 1, packed); }
  // Of several sources, which follow each other.
  OperandB<E> across(const RowsOf<const T>* sources, int64_t count, Word* packed) const {
    const int64_t width = sources[0].width;
    if (count == 1 && rows_are_vectors_of<E>(width))
      return {reinterpret_cast<const Word*>(sources[0].first), false, sources[0].stride};
    const int64_t ld = round_up(width, V::kLanes);
    int64_t rows = 0;
    for (int64_t s = 0; s < count; ++s) rows += list(sources[s], rows);
    pack_across_rows<E>(list_, rows, width, packed, ld);
    return {packed, false, ld};
  }

 private:
  static constexpr int64_t kMost = max_of(kShortQueries, kShortKeys);

  // Puts them on the list from `begin` on; how many they are.
  int64_t list(RowsOf<const T> rows, int64_t begin = 0) const {
    for (int64_t i = 0; i < rows.count; ++i) list_[begin + i] = rows[i];
    return rows.count;
  }

  const T** list_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
