// Rows of a block as operands of the micro-kernel: read where they stand if that gives what packing
// would, else packed. A null row takes no part.
#pragma once

#include <cstdint>

#include "cpu/kernels/packing.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Whether the micro-kernel can read rows where they stand: their elements are its words.
template <class E>
bool rows_are_words_of(const void* base, const int64_t* stride, int64_t width) {
  if constexpr (E::kPerWord == 1) {
    return sizeof(typename E::Element) == sizeof(typename E::Word);
  } else {
    const bool even = stride[0] % 2 == 0 && stride[1] % 2 == 0 && stride[2] % 2 == 0;
    return even && width % 2 == 0 &&
           reinterpret_cast<uintptr_t>(base) % sizeof(typename E::Word) == 0;
  }
}

// Whether rows can stand for the operand that is read in whole vectors.
template <class E>
bool rows_are_vectors_of(int64_t width) {
  return E::kPerWord == 1 && sizeof(typename E::Element) == sizeof(typename E::Word) &&
         width % E::Vec::kLanes == 0;
}

// Rows of queries, some null or none, `stride` apart and `width` wide.
template <class E>
struct QueryRows {
  const typename E::Element* const* rows;
  int64_t count;
  bool any_null;
  const void* base;
  const int64_t* stride;  // batch, head, row
  int64_t width;

  // For products that sum over features.
  OperandA<E> along(typename E::Word* packed, int64_t ld) const {
    if (!any_null && rows_are_words_of<E>(base, stride, width))
      return {reinterpret_cast<const typename E::Word*>(rows[0]), stride[2] / E::kPerWord, 1};
    pack_along_row<E>(rows, count, width, packed, ld);
    return {packed, ld, 1};
  }

  // For products that sum over queries.
  OperandB<E> across(typename E::Word* packed, int64_t ld) const {
    if (!any_null && rows_are_vectors_of<E>(width))
      return {reinterpret_cast<const typename E::Word*>(rows[0]), false, stride[2]};
    pack_across_rows<E>(rows, count, width, packed, ld);
    return {packed, false, ld};
  }
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
