// The keys that queries may see: blocks of them, walking the sources one after the other, and which
// keys of a block no query sees, so that their rows are never read.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/sample.h"
#include "cuda/score_terms.h"

namespace crossmodal::cuda {

// Of a source along the padded concatenation.
__device__ inline int key_offset(const Problem& p, int source) {
  int offset = 0;
  for (int s = 0; s < source; ++s) offset += static_cast<int>(p.source[s].seqlen_k);
  return offset;
}

// Neighbouring keys of one source, some of which may not exist.
struct KeyBlock {
  int source;
  int begin, count;  // rows within the sample; count 0: there is none

  __device__ bool holds(int key) const { return key >= 0 && key < begin + count; }
};

// Which blocks of a walk are one's own where several share it: every `of`-th, so that all get as
// many, whatever the lengths are.
struct Share {
  int index, of;
};

// Blocks of at most block_n keys, one source after the other, over what queries [i_first, i_last]
// of sample b reach. With dropout they begin at multiples of 4 along the concatenation, where words
// of random bits do, if need be before the first key.
class KeyWalk {
 public:
  __device__ KeyWalk(const Problem& p, int b, const Band& band, int i_first, int i_last,
                     int block_n, Share share = {0, 1})
      : p_(p), b_(b), block_n_(block_n), others_(share.index), of_(share.of) {
    enter(0);
    if (band.open) return;
    position_ = align(max(0, min(end_, i_first + band.first)));
    end_ = max(0, min(end_, i_last + band.last + 1));
  }

  __device__ KeyBlock next() {
    int begin = position_ + others_ * block_n_;
    while (begin >= end_ || end_ <= 0) {
      if (source_ + 1 == p_.num_sources) return {source_, end_, 0};
      if (others_ > 0) others_ -= blocks_left();
      enter(source_ + 1);
      begin = position_ + others_ * block_n_;
    }
    others_ = of_ - 1;
    const KeyBlock block = {source_, begin, min(block_n_, end_ - begin)};
    position_ = begin + block.count;
    return block;
  }

 private:
  __device__ void enter(int source) {
    source_ = source;
    position_ = align(0);
    end_ = key_rows_of(p_.source[source], b_).count;
  }
  __device__ int align(int position) const {
    return p_.dropout_p > 0 ? position - (key_offset(p_, source_) + position) % 4 : position;
  }
  // Of this source, own ones or not.
  __device__ int blocks_left() const {
    return max(position_, 0) < end_ ? (end_ - position_ + block_n_ - 1) / block_n_ : 0;
  }

  const Problem& p_;
  int b_;
  int block_n_;
  int others_, of_;  // blocks of others before one's next
  int source_, position_, end_;
};

// Whether some of queries [i_first, i_last] may see key j, as far as masks say. What is the same
// for every query is asked once; dense terms only where the problem says so, as it costs a look at
// them.
__device__ inline bool is_seen(const Problem& p, const KeySource& source, int64_t b, int64_t h,
                               int i_first, int i_last, int j) {
  if (source.num_terms == 0) return true;
  for (int i = i_first; i <= (p.skips_unseen_keys ? i_last : i_first); ++i) {
    bool hidden = false;
    for (int t = 0; t < source.num_terms; ++t) {
      const ScoreTerm& term = source.terms[t];
      hidden |= (p.skips_unseen_keys || is_per_key(term)) && hides_key(term, b, h, i, j);
    }
    if (!hidden) return true;
  }
  return false;
}

// The same for each key of a block of block_n places, by all threads together.
__device__ inline void note_seen_keys(const Problem& p, const KeyBlock& block, int64_t b, int64_t h,
                                      int i_first, int i_last, int block_n, bool* seen) {
  for (int x = threadIdx.x; x < block_n; x += blockDim.x)
    seen[x] = block.holds(block.begin + x) &&
              is_seen(p, p.source[block.source], b, h, i_first, i_last, block.begin + x);
}

}  // namespace crossmodal::cuda
