// From raw products to scores: which keys of a block a query sees, and with what bias. Forward,
// backward and associate share it, so that all of them agree on every mask.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/fragment.h"
#include "cuda/plain_scores.h"
#include "cuda/tanh.h"
#include "cuda/visible_keys.h"

namespace crossmodal::cuda {

// Of exponents of two, by the difference of two scores or plain products.
template <class Acc, bool kPlain>
__device__ __forceinline__ Acc exponent_factor(const Problem& p) {
  return static_cast<Acc>(kPlain ? kLog2E * p.scale : kLog2E);
}
template <class Acc>
__device__ __forceinline__ Acc exponent_factor(const Problem& p, bool plain) {
  return plain ? exponent_factor<Acc, true>(p) : exponent_factor<Acc, false>(p);
}

// One product to its score, of a query and a key that the band and lengths let see each other.
template <class Acc>
__device__ __forceinline__ Acc product_to_score(const Problem& p, const KeySource& source, int b,
                                                int h, int i, int j, Acc product, Acc* slope) {
  Acc score = product * static_cast<Acc>(p.scale);
  if (p.softcap > 0)
    score =
        soft_cap(score, static_cast<Acc>(p.softcap), static_cast<Acc>(p.inverse_softcap), slope);
  for (int t = 0; t < source.num_terms; ++t) {
    const ScoreTerm& term = source.terms[t];
    score = with_term(score, static_cast<Acc>(term.factor),
                      term_value<Acc>(term, term_offset(term, b, h, i, j)));
  }
  return score;
}

// Which rows and columns of a block of accumulators are what: queries by keys, or keys by queries.
enum class Orientation { kQueriesByKeys, kKeysByQueries };

// A block of scores: queries from i_begin on of `num_queries`, keys of one block.
template <Orientation kOrientation>
struct ScoreBlock {
  static constexpr bool kUpright = kOrientation == Orientation::kQueriesByKeys;

  int b, h;
  int i_begin, num_queries;
  KeyBlock keys;
  int j_begin;  // first key, within the block of keys

  // fn(element, query, key) for each accumulator of this lane, both counted within the sample.
  template <class Acc, int kTiles, class Fn>
  __device__ __forceinline__ void for_each(Acc (&c)[kTiles][4], Fn fn) const {
    for_each_element(c, [&](Acc& x, int row, int column) {
      fn(x, i_begin + (kUpright ? row : column), keys.begin + j_begin + (kUpright ? column : row));
    });
  }

  // The same with the element's place in a tensor of such strides, by additions alone.
  template <class Acc, int kTiles, class Fn>
  __device__ __forceinline__ void for_each_of(Acc (&c)[kTiles][4], const int64_t (&stride)[4],
                                              Fn fn) const {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    const int i = i_begin + (kUpright ? row : column);
    const int j = keys.begin + j_begin + (kUpright ? column : row);
    const int64_t down = stride[kUpright ? 2 : 3], right = stride[kUpright ? 3 : 2];
    int64_t at = b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      keep_loads_here();
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int below = e / 2 * 8, beside = t * 8 + e % 2;
        fn(c[t][e], i + (kUpright ? below : beside), j + (kUpright ? beside : below),
           at + (e / 2 ? 8 * down : 0) + (e % 2 ? right : 0));
      }
      at += 8 * right;
    }
  }

  __device__ bool holds(int i, int j) const { return i < num_queries && keys.holds(j); }
  // Whether it holds all of its queries and keys, of which most blocks are.
  template <int kTiles>
  __device__ bool is_full() const {
    return i_begin + height<kTiles>() <= num_queries && keys.begin + j_begin >= 0 &&
           j_begin + width<kTiles>() <= keys.count;
  }
  // Whether the band hides none of it from each other, full or not.
  template <int kTiles>
  __device__ bool is_within(const Band& band) const {
    const int j = keys.begin + j_begin;
    return band.open || (j >= i_begin + height<kTiles>() - 1 + band.first &&
                         j + width<kTiles>() - 1 <= i_begin + band.last);
  }

  // `value` where there is no key, for keys that are counted from 0. Columns are compared, once for
  // both rows of a lane, with what is left of the keys.
  template <class Acc, int kTiles>
  __device__ __forceinline__ void replace_missing_keys(Acc (&c)[kTiles][4], Acc value) const {
    static_assert(kUpright, "keys are columns");
    const int left = keys.count - j_begin;
    if (left >= 8 * kTiles) return;
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (t * 8 + e % 2 >= left - column) c[t][e] = value;
  }
  // `value` where the band hides a key.
  template <class Acc, int kTiles>
  __device__ __forceinline__ void replace_hidden(const Band& band, Acc (&c)[kTiles][4],
                                                 Acc value) const {
    if (is_within<kTiles>(band)) return;
    for_each(c, [&](Acc& x, int i, int j) {
      if (band.hides(i, j)) x = value;
    });
  }

 private:
  template <int kTiles>
  __device__ static constexpr int height() {
    return kUpright ? 16 : 8 * kTiles;
  }
  template <int kTiles>
  __device__ static constexpr int width() {
    return kUpright ? 8 * kTiles : 16;
  }
};

// Products to scores, -inf for what is hidden, whatever the product is there. keep_slope(t, e,
// slope) is told the cap's derivative where scores are capped.
template <bool kPlain, class Acc, int kTiles, class Block, class KeepSlope>
__device__ __forceinline__ void products_to_scores(const Problem& p, const Band& band,
                                                   const Block& block, Acc (&s)[kTiles][4],
                                                   KeepSlope keep_slope) {
  if constexpr (!kPlain) {
    const Acc scale = static_cast<Acc>(p.scale), cap = static_cast<Acc>(p.softcap);
    const Acc inverse_cap = static_cast<Acc>(p.inverse_softcap);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[t][e] *= scale;
        if (cap > 0) {
          Acc derivative;
          s[t][e] = soft_cap(s[t][e], cap, inverse_cap, &derivative);
          keep_slope(t, e, derivative);
        }
      }
    const KeySource& source = p.source[block.keys.source];
    for (int t = 0; t < source.num_terms; ++t) {
      const ScoreTerm& term = source.terms[t];
      const Acc factor = static_cast<Acc>(term.factor);
      with_values<Acc>(term, [&](auto value_at) {
        block.for_each_of(s, term.stride, [&](Acc& x, int i, int j, int64_t at) {
          if (block.holds(i, j)) x = with_term(x, factor, value_at(at));
        });
      });
    }
  }
  if constexpr (kPlain && Block::kUpright) {
    // What a query that does not exist sees is of no account.
    block.replace_missing_keys(s, minus_infinity<Acc>());
  } else if (!block.template is_full<kTiles>()) {
    block.for_each(s, [&](Acc& x, int i, int j) {
      if (!block.holds(i, j)) x = minus_infinity<Acc>();
    });
  }
  block.replace_hidden(band, s, minus_infinity<Acc>());
}

}  // namespace crossmodal::cuda
