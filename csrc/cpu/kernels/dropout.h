// Which weights of a row are dropped: Philox4x32-10 (Salmon et al., 2011) at the coordinates of
// each weight, so that the mask depends on no tile, thread or instruction set.
// core/attention_problem.h states key and counter.
#pragma once

#include <cstdint>

#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Blocks of four words that are drawn together; written as plain loops, which the compiler turns
// into vectors.
constexpr int kPhiloxLanes = 16;

struct PhiloxBlocks {
  uint32_t word[4][kPhiloxLanes];
};

inline uint32_t high_half(uint64_t x) { return static_cast<uint32_t>(x >> 32); }
inline uint32_t low_half(uint64_t x) { return static_cast<uint32_t>(x); }

inline void philox(uint64_t seed, uint32_t query, const uint32_t (&blocks)[kPhiloxLanes],
                   uint32_t pair, PhiloxBlocks* out) {
  uint32_t (&c0)[kPhiloxLanes] = out->word[0], (&c1)[kPhiloxLanes] = out->word[1];
  uint32_t (&c2)[kPhiloxLanes] = out->word[2], (&c3)[kPhiloxLanes] = out->word[3];
  for (int l = 0; l < kPhiloxLanes; ++l) {
    c0[l] = query;
    c1[l] = blocks[l];
    c2[l] = pair;
    c3[l] = 0;
  }
  uint32_t key_0 = low_half(seed), key_1 = high_half(seed);
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < kPhiloxLanes; ++l) {
      const uint64_t product_0 = uint64_t{0xD2511F53u} * c0[l];
      const uint64_t product_1 = uint64_t{0xCD9E8D57u} * c2[l];
      c0[l] = high_half(product_1) ^ c1[l] ^ key_0;
      c1[l] = low_half(product_1);
      c2[l] = high_half(product_0) ^ c3[l] ^ key_1;
      c3[l] = low_half(product_0);
    }
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

template <class Acc>
class Dropout {
 public:
  explicit Dropout(const AttentionProblem& p)
      : p_(p),
        seed_(p.dropout_p > 0 ? static_cast<uint64_t>(*p.dropout_seed) : 0),
        threshold_(static_cast<uint64_t>(p.dropout_p * 4294967296.0)),
        kept_(p.dropout_p < 1 ? static_cast<Acc>(1 / (1 - p.dropout_p)) : Acc(0)) {}

  bool active() const { return p_.dropout_p > 0; }

  // factors[x] = 0 or 1 / (1 - p) for the keys `seen` of a chunk that begins at k_begin.
  void draw(int64_t b, int64_t h, int64_t i, const VisibleKeys& keys, int64_t k_begin, Range seen,
            Acc* factors) const {
    const uint32_t pair = static_cast<uint32_t>(b * p_.num_heads + h);
    int64_t offset = 0;
    int last = 0;
    for_each_stretch(p_, keys, k_begin + seen.begin, k_begin + seen.end,
                     [&](int s, int64_t from, int64_t to, bool contiguous) {
                       for (; last < s; ++last) offset += p_.sources[last].seqlen_k;
                       Acc* row = factors + (from - k_begin);
                       const int32_t* rows = keys.rows + from;
                       if (contiguous) {
                         neighbours(i, pair, offset + rows[0], to - from, row);
                       } else {
                         scattered(i, pair, offset, rows, to - from, row);
                       }
                     });
  }

 private:
  Acc factor(uint32_t word) const { return word >= threshold_ ? kept_ : Acc(0); }

  void neighbours(int64_t i, uint32_t pair, int64_t first, int64_t n, Acc* row) const {
    PhiloxBlocks drawn;
    uint32_t blocks[kPhiloxLanes];
    for (int64_t start = first / 4 * 4; start < first + n; start += 4 * kPhiloxLanes) {
      for (int l = 0; l < kPhiloxLanes; ++l) blocks[l] = static_cast<uint32_t>(start / 4 + l);
      philox(seed_, static_cast<uint32_t>(i), blocks, pair, &drawn);
      const int64_t from = max_of(first, start), to = min_of(first + n, start + 4 * kPhiloxLanes);
      for (int64_t j = from; j < to; ++j)
        row[j - first] = factor(drawn.word[(j - start) % 4][(j - start) / 4]);
    }
  }

  void scattered(int64_t i, uint32_t pair, int64_t offset, const int32_t* rows, int64_t n,
                 Acc* row) const {
    PhiloxBlocks drawn;
    uint32_t blocks[kPhiloxLanes];
    for (int64_t x = 0; x < n; x += kPhiloxLanes) {
      const int filled = static_cast<int>(min_of(kPhiloxLanes, n - x));
      for (int l = 0; l < kPhiloxLanes; ++l)
        blocks[l] = static_cast<uint32_t>((offset + rows[x + min_of(l, filled - 1)]) / 4);
      philox(seed_, static_cast<uint32_t>(i), blocks, pair, &drawn);
      for (int l = 0; l < filled; ++l)
        row[x + l] = factor(drawn.word[(offset + rows[x + l]) % 4][l]);
    }
  }

  const AttentionProblem& p_;
  uint64_t seed_, threshold_;
  Acc kept_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
