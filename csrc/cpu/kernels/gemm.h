// C (+)= A * B over register tiles: A is broadcast word by word, B is read in vectors, C stays in
// registers.
#pragma once

#include <cstdint>

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

// A[i][k] at data[i * row + k * step].
template <class E>
struct OperandA {
  const typename E::Word* data;
  int64_t row;
  int64_t step;
};

// Columns are cut into strips of equal width, at most kMaxTileVectors vectors.
struct Strips {
  int64_t count, base, extra;

  explicit Strips(int64_t vectors)
      : count(ceil_div(vectors, kMaxTileVectors)),
        base(count ? vectors / count : 0),
        extra(count ? vectors % count : 0) {}
  int width(int64_t s) const { return static_cast<int>(base + (s < extra)); }
  int64_t start(int64_t s) const { return s * base + min_of(s, extra); }
};

template <class E>
using TileFn = void (*)(int64_t words, OperandA<E> a, const typename E::Word* b, int64_t b_row,
                        typename E::Acc* c, int64_t c_row, Prefetcher::Lines lines);

template <class E, int kRows, int kVectors, Into kInto>
void tile(int64_t words, OperandA<E> a, const typename E::Word* b, int64_t b_row,
          typename E::Acc* c, int64_t c_row, Prefetcher::Lines lines) {
  using V = typename E::Vec;
  V acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[i][v] = V::zero();

  const typename E::Word* column = a.data;
  const auto step = [&]() __attribute__((always_inline)) {
    typename E::Words operand[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) operand[v] = E::load(b + v * V::kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const typename E::Words scalar = E::broadcast(column[i * a.row]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[i][v] = E::multiply_add(scalar, operand[v], acc[i][v]);
    }
    column += a.step;
    b += b_row;
  };
  int64_t k = 0;
  for (; k < lines.count; ++k) {
    __builtin_prefetch(lines.at);
    lines.at += lines.step;
    step();
  }
  for (; k < words; ++k) step();

  // Adding at the end, not starting from C: summation chains stay as short as one contraction,
  // which is what keeps fp32 accurate over many chunks of keys.
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      typename E::Acc* p = c + i * c_row + v * V::kLanes;
      (kInto == Into::kAdd ? V::load(p) + acc[i][v] : acc[i][v]).store(p);
    }
}

// The tile of `rows` x `vectors` as a function pointer, from tables made at compile time.
template <class E, int kVectors, Into kInto>
struct TileColumn {
  static constexpr int kMax = max_tile_rows(kVectors);
  template <int... kRows>
  static TileFn<E> pick(int rows, IntList<kRows...>) {
    static constexpr TileFn<E> table[] = {tile<E, kRows + 1, kVectors, kInto>...};
    return table[rows - 1];
  }
  static TileFn<E> pick(int rows) { return pick(rows, typename MakeIntList<kMax>::type{}); }
};

template <class E, Into kInto, int kVectors = kMaxTileVectors>
TileFn<E> pick_tile(int rows, int vectors) {
  if constexpr (kVectors == 1) {
    return TileColumn<E, 1, kInto>::pick(rows);
  } else {
    if (vectors == kVectors) return TileColumn<E, kVectors, kInto>::pick(rows);
    return pick_tile<E, kInto, kVectors - 1>(rows, vectors);
  }
}

// C[rows][vectors * lanes] (+)= A[rows][words] * B[words][vectors * lanes]. No contraction leaves C
// as kInto says: zero or untouched. C's rows must have room for whole vectors. Strips without a
// column in `columns` may be left out.
template <class E, Into kInto>
void gemm(int64_t rows, int64_t vectors, int64_t words, OperandA<E> a, OperandB<E> b,
          typename E::Acc* c, int64_t c_row, Range columns = {0, INT64_MAX},
          Prefetcher* prefetcher = nullptr) {
  constexpr int kLanes = E::Vec::kLanes;
  const Strips strips(vectors);
  for (int64_t s = 0; s < strips.count; ++s) {
    const int width = strips.width(s);
    const int64_t start = strips.start(s) * kLanes;
    if (start >= columns.end || start + width * kLanes <= columns.begin) continue;
    const int64_t first = strips.start(s) * kLanes;
    const typename E::Word* b_strip = b.data + (b.panels ? first * words : first);
    const int64_t b_row = b.panels ? width * kLanes : b.ld;
    // Rows are balanced over tiles: 13 rows in tiles of at most 6 are 5 + 4 + 4, not 6 + 6 + 1.
    const int64_t groups = ceil_div(rows, max_tile_rows(width));
    int64_t i = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int height = static_cast<int>(rows / groups + (g < rows % groups));
      typename E::Acc* c_tile = c + i * c_row + first;
      const int64_t chain = min_of(words, kMaxChain);
      const auto lines = [&](int64_t k) {
        return prefetcher ? prefetcher->take(k) : Prefetcher::Lines{};
      };
      pick_tile<E, kInto>(height, width)(chain, {a.data + i * a.row, a.row, a.step}, b_strip, b_row,
                                         c_tile, c_row, lines(chain));
      for (int64_t k = chain; k < words; k += kMaxChain) {
        const int64_t n = min_of(words - k, kMaxChain);
        pick_tile<E, Into::kAdd>(height, width)(n, {a.data + i * a.row + k * a.step, a.row, a.step},
                                                b_strip + k * b_row, b_row, c_tile, c_row,
                                                lines(n));
      }
      i += height;
    }
  }
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
