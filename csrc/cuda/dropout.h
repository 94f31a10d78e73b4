// Which weights of a row are dropped: Philox4x32-10 (Salmon et al., 2011) at the coordinates of
// each weight, so that the mask is the CPU's. core/attention_problem.h states key and counter.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/visible_keys.h"

namespace crossmodal::cuda {

struct PhiloxWords {
  uint32_t word[4];
};

__device__ inline PhiloxWords philox(uint64_t seed, uint32_t query, uint32_t block, uint32_t pair) {
  uint32_t c0 = query, c1 = block, c2 = pair, c3 = 0;
  uint32_t key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high_0 = __umulhi(0xD2511F53u, c0), low_0 = 0xD2511F53u * c0;
    const uint32_t high_1 = __umulhi(0xCD9E8D57u, c2), low_1 = 0xCD9E8D57u * c2;
    c0 = high_1 ^ c1 ^ key_0;
    c1 = low_1;
    c2 = high_0 ^ c3 ^ key_1;
    c3 = low_0;
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

template <class Acc>
class Dropout {
 public:
  __device__ Dropout(const Problem& p, int64_t b, int64_t h)
      : seed_(p.dropout_p > 0 ? static_cast<uint64_t>(*p.dropout_seed) : 0),
        threshold_(p.dropout_threshold),
        pair_(static_cast<uint32_t>(b * p.num_heads + h)),
        kept_(static_cast<Acc>(p.dropout_kept)),
        active_(p.dropout_p > 0) {}

  __device__ bool active() const { return active_; }
  // What kept weights are multiplied with; 1 without dropout.
  __device__ Acc kept() const { return active_ ? kept_ : Acc(1); }

  // Whether query i of head h drops key j, counted along the concatenation.
  __device__ bool drops(const Problem& p, int64_t b, int64_t h, int i, int j) const {
    const uint32_t pair = static_cast<uint32_t>(b * p.num_heads + h);
    const PhiloxWords drawn =
        philox(seed_, static_cast<uint32_t>(i), static_cast<uint32_t>(j / 4), pair);
    // All are read first: an index known at run time alone would put them into memory.
    const uint32_t w0 = drawn.word[0], w1 = drawn.word[1], w2 = drawn.word[2], w3 = drawn.word[3];
    const uint32_t low = j & 1 ? w1 : w0, high = j & 1 ? w3 : w2;
    return (j & 2 ? high : low) < threshold_;
  }

  // A bit for each accumulator of this lane, bit 4 * t + e: set where query i drops key j. A tile
  // takes 32 blocks of four words: each lane draws one, and lanes exchange them. All lanes take
  // part.
  template <int kTiles, class Block>
  __device__ __forceinline__ uint32_t dropped(const Problem& p, const Block& block) const {
    static_assert(kTiles <= 8, "one word of bits");
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    const int offset = key_offset(p, block.keys.source) + block.keys.begin + block.j_begin;
    uint32_t bits = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if constexpr (Block::kUpright) {
        // Lane l: query l / 4, or 8 further, keys 4 * (l % 2) and on.
        const PhiloxWords drawn =
            draw(block.i_begin + row + lane / 2 % 2 * 8, offset + 8 * t + lane % 2 * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int owner = (lane & ~3) + e / 2 * 2 + column / 4;
          const uint32_t low = exchange(drawn.word[e % 2], owner);
          const uint32_t high = exchange(drawn.word[e % 2 + 2], owner);
          if ((column % 4 ? high : low) < threshold_) bits |= 1u << (4 * t + e);
        }
      } else {
        // Lane l: query l % 8, keys 4 * (l / 8) and on.
        const PhiloxWords drawn = draw(block.i_begin + 8 * t + lane % 8, offset + lane / 8 * 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int owner = (row / 4 + e / 2 * 2) * 8 + column + e % 2;
          uint32_t word = 0;
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const uint32_t candidate = exchange(drawn.word[w], owner);
            if (row % 4 == w) word = candidate;
          }
          if (word < threshold_) bits |= 1u << (4 * t + e);
        }
      }
    }
    return bits;
  }

 private:
  // Words of query i for keys [j, j + 4), j a multiple of 4.
  __device__ PhiloxWords draw(int i, int j) const {
    return philox(seed_, static_cast<uint32_t>(i), static_cast<uint32_t>(j / 4), pair_);
  }
  __device__ static uint32_t exchange(uint32_t word, int owner) {
    return __shfl_sync(0xffffffffu, word, owner);
  }

  uint64_t seed_, threshold_;
  uint32_t pair_;
  Acc kept_;
  bool active_;
};

// x -> 0 where its bit is set, whatever x is there.
template <class Acc, int kTiles>
__device__ __forceinline__ void drop(Acc (&x)[kTiles][4], uint32_t bits) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (bits >> (4 * t + e) & 1) x[t][e] = 0;
}

}  // namespace crossmodal::cuda
