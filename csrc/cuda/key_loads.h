// Blocks of keys and values on their way to shared memory, for kernels that own queries and walk
// keys.
#pragma once

#include <cuda_runtime.h>

#include "cuda/alignment.h"
#include "cuda/tile.h"
#include "cuda/visible_keys.h"

namespace crossmodal::cuda {

// For queries [i_first, i_last] of (b, h). Where a source's rows begin is found when its first
// block comes: divisions and wide products, which would take as many instructions as the copies.
template <class T, bool kPlain>
class KeyLoads {
 public:
  __device__ KeyLoads(const Problem& p, const Alignment& aligned, int b, int h, int i_first,
                      int i_last)
      : p_(p), aligned_(aligned), b_(b), h_(h), i_first_(i_first), i_last_(i_last) {}

  // Fills tiles of kBlockN rows; values from column `first_v` on. Rows of keys that no query sees
  // may hold anything: they are not read. seen: flags of as many keys, one set for each stage.
  template <int kBlockN, int kWidth>
  __device__ __forceinline__ void load(const KeyBlock& block, bool* seen,
                                       const Tile<T, kWidth>& keys, int panels,
                                       const Tile<T, kWidth>& values, int panels_v, int first_v) {
    // Where masks and biases need registers, too, they are found for each block.
    if (!kPlain || block.source != source_) {
      found_ = first_rows(block.source);
      source_ = block.source;
    }
    const KeySource& source = p_.source[block.source];
    const int64_t stride = source.k_stride[2], stride_v = source.v_stride[2];
    const GlobalRows<T> from = {found_.k + block.begin * stride, stride,
                                static_cast<int>(p_.head_dim), aligned_.key(block.source)};
    const GlobalRows<T> from_v = {found_.v + block.begin * stride_v, stride_v,
                                  static_cast<int>(p_.head_dim_v), aligned_.value(block.source)};
    const auto load_both = [&](auto wanted) {
      load_tile(keys, panels, kBlockN, from, 0, wanted);
      load_tile(values, panels_v, kBlockN, from_v, first_v, wanted);
    };
    if constexpr (kPlain) {
      load_both([&](int key) { return key < block.count; });
    } else {
      const bool all = source.num_terms == 0;
      if (!all) {
        note_seen_keys(p_, block, b_, h_, i_first_, i_last_, kBlockN, seen);
        __syncthreads();
      }
      load_both([&](int key) { return block.holds(block.begin + key) && (all || seen[key]); });
    }
  }

 private:
  struct FirstRows {
    const T *k, *v;
  };

  // Of the sample in a source.
  __device__ FirstRows first_rows(int s) const {
    const KeySource& source = p_.source[s];
    const int head = key_head(p_, s, h_), first = key_rows_of(source, b_).first;
    return {row_at<const T>(source.k, source.k_stride, b_, head, first),
            row_at<const T>(source.v, source.v_stride, b_, head, first)};
  }

  const Problem& p_;
  const Alignment& aligned_;
  int b_, h_, i_first_, i_last_;
  int source_ = -1;
  FirstRows found_ = {};  // of source_
};

}  // namespace crossmodal::cuda
