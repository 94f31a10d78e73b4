// Rows of a tensor, given by pointers, into the words that the micro-kernel reads. A row pointer
// list is what turns lengths, masks and several sources into one dense problem: a hidden key has no
// pointer.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/engine.h"
#include "cpu/kernels/gemm.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// dst[i][w]: words along the row, for the operand whose contraction runs over the row (Q and dout
// in Q K^T and dout V^T). A null row is zero: it takes no part, whatever it holds.
template <class E>
void pack_along_row(const typename E::Element* const* rows, int64_t n, int64_t width,
                    typename E::Word* dst, int64_t ld) {
  using V = typename E::Vec;
  for (int64_t i = 0; i < n; ++i) {
    typename E::Word* out = dst + i * ld;
    if (rows[i] == nullptr) {
      std::memset(out, 0, words_for<E>(width) * sizeof(*out));
      continue;
    }
    if constexpr (E::kPerWord == 1) {
      int64_t w = 0;
      for (; w + V::kLanes <= width; w += V::kLanes) V::load(rows[i] + w).store(out + w);
      if (w < width) {
        const int rest = static_cast<int>(width - w);
        V::load_first(rows[i] + w, rest).store_first(out + w, rest);
      }
    } else {
      if (width % 2) out[width / 2] = 0;
      std::memcpy(out, rows[i], width * sizeof(typename E::Element));
    }
  }
}

// One 32-bit word (float, or a pair of bfloat16) of a row; the pair beyond the row's end is filled
// with zero.
template <class E>
VecF load_words_first(const typename E::Element* row, int64_t width, int64_t w, int n) {
  if constexpr (E::kPerWord == 1) {
    return VecF::load_first(row + w, n);
  } else {
    alignas(64) uint32_t words[VecF::kLanes] = {};
    const int64_t elements = min_of(int64_t{2} * n, width - 2 * w);
    std::memcpy(words, row + 2 * w, elements * sizeof(typename E::Element));
    return VecF::load(reinterpret_cast<const float*>(words));
  }
}

// All lanes of a row's words from word w on.
template <class E>
VecF load_whole_words(const typename E::Element* row, int64_t w) {
  if constexpr (E::kPerWord == 1) {
    return VecF::load(row + w);
  } else {
    VecF words;
    std::memcpy(&words, row + w * E::kPerWord, sizeof(words));
    return words;
  }
}

// Panels of the transpose: strip by strip dst[w][columns of the strip], column j = row j, zero
// beyond n. dst holds words_for(width) * round_up(n, lanes) words.
template <class E>
void pack_transposed(const typename E::Element* const* rows, int64_t n, int64_t width,
                     typename E::Word* dst) {
  using V = typename E::Vec;
  constexpr int kLanes = V::kLanes;
  const int64_t words = words_for<E>(width);
  const Pieces strips = strips_of(ceil_div(n, kLanes));
  for (int64_t s = 0; s < strips.count; ++s) {
    const int64_t ld = strips.size(s) * kLanes;
    typename E::Word* panel = dst + strips.start(s) * kLanes * words;
    for (int v = 0; v < strips.size(s); ++v) {
      const int64_t j0 = (strips.start(s) + v) * kLanes;
      const int filled = static_cast<int>(min_of(kLanes, n - j0));
      typename E::Word* column = panel + v * kLanes;
      if constexpr (sizeof(typename E::Word) == 4) {
        for (int64_t w = 0; w < words; w += kLanes) {
          const int rest = static_cast<int>(min_of(kLanes, words - w));
          const bool whole = rest == kLanes && (w + rest) * E::kPerWord <= width;
          VecF block[kLanes];
          for (int i = 0; i < kLanes; ++i) {
            if (i >= filled) {
              block[i] = VecF::zero();
            } else {
              block[i] = whole ? load_whole_words<E>(rows[j0 + i], w)
                               : load_words_first<E>(rows[j0 + i], width, w, rest);
            }
          }
          transpose(block);
          for (int i = 0; i < rest; ++i)
            block[i].store(reinterpret_cast<float*>(column + (w + i) * ld));
        }
      } else {
        for (int64_t w = 0; w < words; ++w)
          for (int i = 0; i < kLanes; ++i) column[w * ld + i] = i < filled ? rows[j0 + i][w] : 0;
      }
    }
  }
}

enum class NonFinite { kKeep, kZero };

// dst[i / kPerWord][column]: words across rows, for the operand whose contraction runs over the
// rows (V in P V, K in dS K, Q and dout in the transposed products). Columns are filled with zero
// up to ld, a whole number of vectors; so is the missing partner of an odd last row. kZero writes 0
// for NaN and Inf.
template <class E, NonFinite kNonFinite = NonFinite::kKeep>
void pack_across_rows(const typename E::Element* const* rows, int64_t n, int64_t width,
                      typename E::Word* dst, int64_t ld) {
  using V = typename E::Vec;
  constexpr int kLanes = V::kLanes;
  constexpr bool kFinite = kNonFinite == NonFinite::kZero;
  for (int64_t i = 0; i < n; i += E::kPerWord) {
    typename E::Word* out = dst + i / E::kPerWord * ld;
    for (int64_t w = 0; w < ld; w += kLanes) {
      const int rest = static_cast<int>(max_of(0, min_of(kLanes, width - w)));
      const auto at = [&](int64_t row) { return row < n && rows[row] ? rows[row] + w : nullptr; };
      if constexpr (E::kPerWord == 2) {
        store_row_pairs(at(i), at(i + 1), rest, kFinite, out + w);
      } else {
        V x = V::zero();
        if (at(i)) x = rest == kLanes ? V::load(at(i)) : V::load_first(at(i), rest);
        (kFinite ? zero_non_finite(x) : x).store(out + w);
      }
    }
  }
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
