// Products of the rows of two matrices, for each (batch, head): out_mn = <left_m, right_n>, 0 for
// hidden pairs of m and n. The gradient of weights is that of dout and values.
//
// A block owns 16 rows of `left` to a warp and walks those of `right`. Rows of the output, of which
// hardly one begins at a multiple of 16 bytes, are written by whole warps, neighbours by
// neighbours.
#pragma once

#include <cuda_runtime.h>

#include "cuda/block_pipeline.h"
#include "cuda/divisor.h"
#include "cuda/engine.h"
#include "cuda/fragment.h"
#include "cuda/host_device.h"
#include "cuda/pair_operands.h"

namespace crossmodal::cuda {

struct RowProducts {
  MatrixRows<const void> left, right;
  void* out;         // [batch, head, m, n], contiguous
  bool out_aligned;  // all rows begin at multiples of 16 bytes
  HiddenPairs hidden;
  uint32_t pairs;  // of batch and head
  uint32_t num_heads;
  Divisor heads_in;  // divides a pair's number
  Divisor parts_in;  // divides a block's
  int size_m, size_n, columns;
  int n_per_block;  // a multiple of kRows
  int parts;
  int warps, stages, panels;
};

template <class T>
struct RowProductsTiling {
  static constexpr int kRows = sizeof(T) == 2   ? 80
                               : sizeof(T) == 4 ? 48
                                                : 32;      // of right, in a step
  static constexpr int kWidth = sizeof(T) == 8 ? 32 : 64;  // of a panel

  // In elements. One panel of left stays where it is.
  CROSSMODAL_HOST_DEVICE static int left(int warps, int stages, int panels) {
    return (panels > 1 ? stages : 1) * warps * 16 * kWidth;
  }
  CROSSMODAL_HOST_DEVICE static int right(int stages) { return stages * kRows * kWidth; }
  CROSSMODAL_HOST_DEVICE static int products(int warps) {
    return warps * 16 * StagedRows<T, kRows>::kPitch;
  }
};

template <class E>
class RowProductsBlock {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  using Sizes = RowProductsTiling<T>;
  using Staged = StagedRows<T, Sizes::kRows>;
  static constexpr int kRows = Sizes::kRows, kWidth = Sizes::kWidth, kTiles = kRows / 8;

 public:
  __device__ RowProductsBlock(const RowProducts& p, uint32_t pair, uint32_t b, uint32_t h,
                              int first_m, int first_n)
      : p_(p),
        hidden_(p.hidden, b, h),
        first_m_(first_m),
        first_n_(first_n),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16),
        length_(p.hidden.length(b, p.size_n)) {
    left_ = p.left.at<const T>(b, h, first_m);
    right_ = p.right.at<const T>(b, h, 0);
    out_ = static_cast<T*>(p.out) + (int64_t{pair} * p.size_m + first_m + warp_row_) * p.size_n;
  }

  __device__ void run() {
    const int end = first_n_ + min(p_.n_per_block, p_.size_n - first_n_);
    Walk walk{first_n_, end, p_.panels, 0};
    Acc products[kTiles][4];
    walk_blocks(
        walk, p_.stages,
        [&](const Block& block, int stage) {
          if (p_.panels > 1 || block.begin == first_n_) load_left(block, stage);
          const int there = min(block.count, length_ - block.begin);
          load_rows(right_tile(stage), block.count, right_ + block.begin * p_.right.stride[2],
                    p_.right, there, block.panel * kWidth, p_.columns);
        },
        [&](const Block& block, int stage) {
          const int rows = min(16, p_.size_m - first_m_ - warp_row_);  // of this warp
          if (rows <= 0) return;
          if (block.panel == 0) clear(products);
          if (block.begin < length_) add_products(products, stage);
          if (block.panel == p_.panels - 1) store(block, products, rows);
        });
  }

 private:
  struct Block {
    int begin, count, panel;
  };
  struct Walk {
    int at, end, panels, panel;
    __device__ Block next() {
      const Block block = {at, min(kRows, end - at), panel};
      if (++panel == panels) {
        panel = 0;
        at += max(0, block.count);
      }
      return block;
    }
  };

  __device__ __forceinline__ void add_products(Acc (&products)[kTiles][4], int stage) const {
    multiply_rows<E, kWidth>(products, left_tile(stage), warp_row_, 0, right_tile(stage), 0, 1);
  }

  __device__ void load_left(const Block& block, int stage) {
    const int rows = min(p_.warps * 16, p_.size_m - first_m_);
    load_rows(left_tile(stage), rows, left_, p_.left, rows, block.panel * kWidth, p_.columns);
  }

  // -- shared memory: left, right, products of every warp ----------------------------------------

  __device__ T* tiles() const { return reinterpret_cast<T*>(shared_memory()); }
  __device__ Tile<T, kWidth> left_tile(int stage) const {
    return {tiles() + (p_.panels > 1 ? stage * p_.warps * 16 * kWidth : 0)};
  }
  __device__ Tile<T, kWidth> right_tile(int stage) const {
    return {tiles() + Sizes::left(p_.warps, p_.stages, p_.panels) + stage * kRows * kWidth};
  }
  __device__ Staged staged_rows() const {
    return {tiles() + Sizes::left(p_.warps, p_.stages, p_.panels) + Sizes::right(p_.stages) +
            warp_row_ * Staged::kPitch};
  }

  __device__ __forceinline__ void store(const Block& block, const Acc (&products)[kTiles][4],
                                        int rows) {
    const int lane = threadIdx.x % 32;
    const Staged staged = staged_rows();
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        E::store_pair(staged.element(lane / 4 + 8 * r, 8 * t + lane % 4 * 2), products[t][2 * r],
                      products[t][2 * r + 1]);
    __syncwarp();
    if (hidden_.exists() || block.begin + block.count > length_) hide(block, staged, rows);
    staged.store(rows, out_ + block.begin, p_.size_n, block.count, p_.out_aligned);
  }

  // By choice, not by a product with 0: a row may have been NaN.
  __device__ void hide(const Block& block, const Staged& staged, int rows) {
    const auto hide_one = [&](int row, int column) { *staged.element(row, column) = T{}; };
    if (hidden_.exists())
      for_each_hidden<kRows>(hidden_.at(first_m_ + warp_row_, block.begin), hidden_.stride(true),
                             hidden_.stride(false), 0, 1, rows, block.count, hide_one);
    const int lane = threadIdx.x % 32;
    for (int column = max(0, length_ - block.begin) + lane; column < block.count; column += 32)
      for (int row = 0; row < rows; ++row) hide_one(row, column);
    __syncwarp();
  }

  const RowProducts& p_;
  const PairMask hidden_;
  int first_m_, first_n_;
  int warp_row_;
  int length_;
  const T *left_, *right_;
  T* out_;
};

}  // namespace crossmodal::cuda
