// A * B over register tiles: A is broadcast word by word, B is read in vectors, sums stay in
// registers until they leave for an array of accumulators or for the rows of a tensor.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/engine.h"
#include "cpu/kernels/prefetch.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

enum class Into { kStore, kAdd };

// B in one of two layouts: `panels` holds strips of columns one after the other, each
// [words][columns of the strip] (what pack_transposed writes: rows of a strip are neighbours, so
// that they do not fight for one cache set); otherwise it is a plain matrix with row stride `ld`.
template <class E>
struct OperandB {
  const typename E::Word* data;
  bool panels;
  int64_t ld;
};

// Whether each row has one more element, which is no whole word: what follows it is not read.
template <class E, bool = E::kPerWord == 2>
struct HalfWord {
  bool half = false;
};
template <class E>
struct HalfWord<E, false> {
  static constexpr bool half = false;
};

// A[i][k] at data + i * row + k * step, in bytes: rows of half-precision elements may begin within
// a word.
template <class E>
struct OperandA : HalfWord<E> {
  using Word = typename E::Word;
  using Element = typename E::Element;

  const char* data;
  int64_t row, step;

  // `row` and `step` in words.
  OperandA(const Word* words, int64_t row, int64_t step)
      : data(reinterpret_cast<const char*>(words)),
        row(row * int64_t{sizeof(Word)}),
        step(step * int64_t{sizeof(Word)}) {}
  // Rows of `width` elements, `stride` elements apart, where they stand. Their words_within(width)
  // words are the contraction.
  static OperandA in_place(const Element* rows, int64_t stride, int64_t width) {
    OperandA a(reinterpret_cast<const Word*>(rows), 0, 1);
    a.row = stride * int64_t{sizeof(Element)};
    if constexpr (E::kPerWord == 2) a.half = width % 2 != 0;
    return a;
  }

  OperandA at(int64_t i, int64_t k) const {
    OperandA a = *this;
    a.data += i * row + k * step;
    return a;
  }
};

template <class E>
constexpr int64_t words_within(int64_t width) {
  return width / E::kPerWord;
}

// [0, total) in pieces of nearly equal size, at most `most` each: 13 in pieces of at most 6 are 5 +
// 4 + 4, not 6 + 6 + 1.
struct Pieces {
  int64_t count, base, extra;

  Pieces(int64_t total, int64_t most) : count(total > 0), base(total), extra(0) {
    if (total <= most) return;  // without a division
    count = ceil_div(total, most);
    base = total / count;
    extra = total % count;
  }
  int64_t size(int64_t i) const { return base + (i < extra); }
  int64_t start(int64_t i) const { return i * base + min_of(i, extra); }
};

constexpr int64_t kNarrowChain = min_of(16, kMaxChain);

// Columns of B, counted in vectors, by what a tile takes.
inline Pieces strips_of(int64_t vectors) { return {vectors, kMaxTileVectors}; }

// What becomes of a tile's sums: they are stored, or added to what is there.
template <class E, Into kInto>
struct ToSums {
  using Acc = typename E::Acc;
  using V = typename E::Vec;

  Acc* sums;  // rows `ld` apart, with room for whole vectors
  int64_t ld;

  ToSums at(int64_t i, int64_t column) const { return {sums + i * ld + column, ld}; }
  template <int kRows, int kVectors>
  void put(const V (&tile)[kRows][kVectors]) const {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        Acc* p = sums + i * ld + v * V::kLanes;
        (kInto == Into::kAdd ? V::load(p) + tile[i][v] : tile[i][v]).store(p);
      }
  }
};

// Or they are finished: what earlier products left is added, each row has its factor, and the rows
// of a tensor are written, no further than they reach.
template <class E>
struct ToRows {
  using Acc = typename E::Acc;
  using V = typename E::Vec;

  typename E::Element* rows;
  int64_t stride, width;
  const Acc* factors = nullptr;  // [rows], or null
  const Acc* earlier = nullptr;  // rows `ld` apart, or null
  int64_t ld = 0;

  ToRows at(int64_t i, int64_t column) const {
    return {rows + i * stride + column,
            stride,
            width - column,
            factors ? factors + i : nullptr,
            earlier ? earlier + i * ld + column : nullptr,
            ld};
  }
  template <int kRows, int kVectors>
  void put(const V (&tile)[kRows][kVectors]) const {
    if (earlier || width < kVectors * V::kLanes) {
      Acc sums[kRows * kVectors * V::kLanes];
      ToSums<E, Into::kStore>{sums, kVectors * V::kLanes}.put(tile);
      return put(sums, kRows, kVectors);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V factor = V::set1(factors ? factors[i] : Acc{1});
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        (tile[i][v] * factor).store(rows + i * stride + v * V::kLanes);
    }
  }

 private:
  // The rarer cases, once for all tiles: unrolled in each they are most of what there is to
  // compile.
  __attribute__((noinline)) void put(const Acc* sums, int count, int vectors) const {
    for (int i = 0; i < count; ++i) {
      const V factor = V::set1(factors ? factors[i] : Acc{1});
      for (int v = 0; v < vectors; ++v) {
        const int64_t x = int64_t{v} * V::kLanes, rest = width - x;
        V sum = V::load(sums + (int64_t{i} * vectors + v) * V::kLanes);
        if (earlier) sum = V::load(earlier + i * ld + x) + sum;
        sum = sum * factor;
        if (rest >= V::kLanes) {
          sum.store(rows + i * stride + x);
        } else if (rest > 0) {
          sum.store_first(rows + i * stride + x, static_cast<int>(rest));
        }
      }
    }
  }
};

template <class E, class To>
using TileFn = void (*)(int64_t words, OperandA<E> a, const typename E::Word* b, int64_t b_row,
                        To to, Prefetcher::Lines lines);

template <class E, int kRows, int kVectors, class To>
void tile(int64_t words, OperandA<E> a, const typename E::Word* b, int64_t b_row, To to,
          Prefetcher::Lines lines) {
  using V = typename E::Vec;
  V acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[i][v] = V::zero();

  const char* column = a.data;
  const auto step = [&](auto read) __attribute__((always_inline)) {
    typename E::Words operand[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) operand[v] = E::load(b + v * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const typename E::Words scalar = read(column + i * a.row);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[i][v] = E::multiply_add(scalar, operand[v], acc[i][v]);
    }
    column += a.step;
    b += b_row;
  };
  const auto whole = [](const char* at) {
    typename E::Word word;
    std::memcpy(&word, at, sizeof(word));
    return E::broadcast(word);
  };
  int64_t k = 0;
  for (; k < lines.count; ++k) {
    __builtin_prefetch(lines.at);
    lines.at += lines.step;
    step(whole);
  }
  for (; k < words; ++k) step(whole);
  if constexpr (E::kPerWord == 2) {
    if (a.half)
      step([](const char* at) {
        uint16_t element;
        std::memcpy(&element, at, sizeof(element));
        return E::broadcast(element);
      });
  }

  // Adding at the end, not starting from C: summation chains stay as short as one contraction,
  // which is what keeps fp32 accurate over many chunks of keys.
  to.put(acc);
}

// The tile of `rows` x `vectors` as a function pointer, from tables made at compile time.
template <class E, int kVectors, class To>
struct TileColumn {
  static constexpr int kMax = max_tile_rows(kVectors);
  template <int... kRows>
  static TileFn<E, To> pick(int rows, IntList<kRows...>) {
    static constexpr TileFn<E, To> table[] = {tile<E, kRows + 1, kVectors, To>...};
    return table[rows - 1];
  }
  static TileFn<E, To> pick(int rows) { return pick(rows, typename MakeIntList<kMax>::type{}); }
};

template <class E, class To, int kVectors = kMaxTileVectors>
TileFn<E, To> pick_tile(int rows, int vectors) {
  if constexpr (kVectors == 1) {
    return TileColumn<E, 1, To>::pick(rows);
  } else {
    if (vectors == kVectors) return TileColumn<E, kVectors, To>::pick(rows);
    return pick_tile<E, To, kVectors - 1>(rows, vectors);
  }
}

// One tile's products along one piece of the contraction.
template <class E>
struct TileProduct {
  int height, width;    // rows, vectors
  int64_t row, column;  // of C, where it begins
  bool first, last;     // of the pieces that are summed there
  int64_t words;
  OperandA<E> a;
  const typename E::Word* b;
  int64_t b_row;
  Prefetcher::Lines lines;

  template <class To>
  void run(To to) const {
    pick_tile<E, To>(height, width)(words, a, b, b_row, to.at(row, column), lines);
  }
};

// Calls fn(tile product) for A[rows][words] * B[words][vectors * lanes], and half a word more where
// A has it. Strips without a column in `columns` may be left out.
template <class E, class Fn>
void for_each_tile(int64_t rows, int64_t vectors, int64_t words, OperandA<E> a, OperandB<E> b,
                   Range columns, Prefetcher* prefetcher, Fn fn) {
  constexpr int kLanes = E::Vec::kLanes;
  // A column or a few, summed over keys or queries: torch forms them as dot products, whose chains
  // are short.
  const int64_t longest = b.panels || vectors > 1 ? kMaxChain : kNarrowChain;
  const Pieces strips = strips_of(vectors), chains(max_of(words, 1), longest);
  for (int64_t s = 0; s < strips.count; ++s) {
    const int width = static_cast<int>(strips.size(s));
    const int64_t column = strips.start(s) * kLanes;
    if (column >= columns.end || column + width * kLanes <= columns.begin) continue;
    const typename E::Word* b_strip = b.data + (b.panels ? column * words : column);
    const int64_t b_row = b.panels ? width * kLanes : b.ld;
    const Pieces tiles(rows, max_tile_rows(width));
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t i = tiles.start(t);
      const int height = static_cast<int>(tiles.size(t));
      for (int64_t x = 0; x < chains.count; ++x) {
        const int64_t k = chains.start(x), n = min_of(words, chains.size(x));
        const bool last = x + 1 == chains.count;
        OperandA<E> piece = a.at(i, k);
        if constexpr (E::kPerWord == 2) piece.half = a.half && last;
        fn(TileProduct<E>{height, width, i, column, x == 0, last, n, piece, b_strip + k * b_row,
                          b_row, prefetcher ? prefetcher->take(n) : Prefetcher::Lines{}});
      }
    }
  }
}

// C (+)= A * B. No contraction leaves C as kInto says: zero or untouched. C's rows must have room
// for whole vectors.
template <class E, Into kInto>
void gemm(int64_t rows, int64_t vectors, int64_t words, OperandA<E> a, OperandB<E> b,
          typename E::Acc* c, int64_t c_row, Range columns = {0, INT64_MAX},
          Prefetcher* prefetcher = nullptr) {
  for_each_tile<E>(rows, vectors, words, a, b, columns, prefetcher,
                   [&](const TileProduct<E>& product) {
                     if (product.first) {
                       product.run(ToSums<E, kInto>{c, c_row});
                     } else {
                       product.run(ToSums<E, Into::kAdd>{c, c_row});
                     }
                   });
}

// Rows of a tensor = factors * (A * B), or factors * (C + A * B) where `adds`; C, with room as
// above, takes what does not fit one chain.
template <class E>
void gemm_to_rows(int64_t rows, int64_t words, OperandA<E> a, OperandB<E> b, ToRows<E> to,
                  typename E::Acc* c, int64_t c_row, bool adds = false,
                  Prefetcher* prefetcher = nullptr) {
  for_each_tile<E>(rows, ceil_div(to.width, E::Vec::kLanes), words, a, b, {0, INT64_MAX},
                   prefetcher, [&](const TileProduct<E>& product) {
                     if (product.last) {
                       to.earlier = adds || !product.first ? c : nullptr;
                       to.ld = c_row;
                       product.run(to);
                     } else if (product.first && !adds) {
                       product.run(ToSums<E, Into::kStore>{c, c_row});
                     } else {
                       product.run(ToSums<E, Into::kAdd>{c, c_row});
                     }
                   });
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
