// A sum over rows of a matrix, weighted, for each (batch, head): out_m = sum_n weights_mn * rows_n.
// Forward sums values over keys; the gradient of values sums dout over queries. Hidden pairs of m
// and n are skipped, whatever stands there.
//
// A block owns 16 sums to a warp, kWidth columns of them, and walks the rows. Weights are an
// operand of matrix instructions as they lie in memory, whichever of their dimensions is that of
// neighbours.
#pragma once

#include <cuda_runtime.h>

#include "cuda/block_pipeline.h"
#include "cuda/divisor.h"
#include "cuda/fragment.h"
#include "cuda/host_device.h"
#include "cuda/pair_operands.h"
#include "cuda/weight_tile.h"

namespace crossmodal::cuda {

struct RowSum {
  const void* weights;
  int64_t weights_stride[4];    // batch, head, m, n
  MatrixRows<const void> rows;  // n by columns
  MatrixRows<void> out;         // m by columns
  HiddenPairs hidden;
  uint32_t pairs;  // of batch and head
  uint32_t num_heads;
  Divisor heads_in;   // divides a pair's number
  Divisor chunks_in;  // divides a block's
  int size_m, size_n, columns;
  int warps, stages, chunks;
};

// Rows of a step, columns of a chunk, columns of weights in a panel of the tile.
template <class T>
struct RowSumTiling {
  static constexpr int kRows = sizeof(T) == 2 ? 80 : 128 / sizeof(T);
  static constexpr int kWidth = sizeof(T) == 8 ? 32 : 64;
  static constexpr int kPitch = WeightTile<T, kRows>::kPitch;

  // Weights of a stage, in elements.
  CROSSMODAL_HOST_DEVICE static int weights(Along along, int warps) {
    return along == Along::kSummed ? warps * 16 * kPitch
                                   : (warps * 16 + kRows - 1) / kRows * kRows * kPitch;
  }
  CROSSMODAL_HOST_DEVICE static int stage(Along along, int warps) {
    return weights(along, warps) + kRows * kWidth;
  }
};

constexpr int kFlagBytes = 16;  // in front of the tiles

// Pairs of operands c += A * tile, as E::straight makes them. Where matrices of a step stand is
// computed once: steps are as far apart as the permutation of the tile repeats itself.
template <class E, int kWidth>
class StraightOperand {
  using T = typename E::Element;
  static constexpr bool kMatrices = E::kStep == 16;

 public:
  __device__ explicit StraightOperand(const Tile<T, kWidth>& x) : x_(x) {
    const int lane = threadIdx.x % 32;
    if constexpr (kMatrices)
#pragma unroll
      for (int pair = 0; pair < kWidth / 16; ++pair)
        at_[pair] = shared_address(x.chunk(lane % 16, 2 * pair + lane / 16));
  }

  __device__ __forceinline__ void at(int step, int pair, typename E::B (&b)[2]) const {
    if constexpr (kMatrices) {
      uint32_t r[4];
      load_matrices_transposed(r,
                               at_[pair] + step * E::kStep * kWidth * static_cast<int>(sizeof(T)));
      b[0] = {{r[0], r[1]}};
      b[1] = {{r[2], r[3]}};
    } else {
      E::straight(x_, step * E::kStep, 16 * pair, false, b);
    }
  }

 private:
  Tile<T, kWidth> x_;
  SharedAddress at_[kMatrices ? kWidth / 16 : 1];
};

// kPlain: there is no mask, and neighbours in the tile are neighbours in memory.
template <class E, Along kAlong, bool kPlain>
class RowSumBlock {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  using Sizes = RowSumTiling<T>;
  using Weights = WeightTile<T, Sizes::kRows>;
  using Staged = StagedRows<T, Sizes::kWidth>;
  static constexpr int kRows = Sizes::kRows, kWidth = Sizes::kWidth, kTiles = kWidth / 8;
  static constexpr bool kSummed = kAlong == Along::kSummed;

 public:
  __device__ RowSumBlock(const RowSum& p, uint32_t b, uint32_t h, int first_m, int first_column)
      : p_(p),
        hidden_(p.hidden, b, h),
        first_m_(first_m),
        first_column_(first_column),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16) {
    const int length = p.hidden.length(b, p.hidden.lengths_count_m ? p.size_m : p.size_n);
    end_m_ = p.hidden.lengths_count_m ? length : p.size_m;
    end_n_ = p.hidden.lengths_count_m ? p.size_n : length;
    weights_ =
        static_cast<const T*>(p.weights) + (b * p.weights_stride[0] + h * p.weights_stride[1] +
                                            static_cast<uint32_t>(first_m) * p.weights_stride[2]);
    rows_ = p.rows.at<const T>(b, h, 0);
    out_ = p.out.at<T>(b, h, first_m);
  }

  __device__ void run() {
    clear(sums_);
    if (first_m_ < end_m_) walk();
    store();
  }

 private:
  struct Block {
    int begin, count;
  };
  struct Walk {
    int at, end;
    __device__ Block next() {
      const Block block = {at, min(kRows, end - at)};
      at += max(0, block.count);
      return block;
    }
  };

  __device__ void walk() {
    // What a row of the tile begins with is the same in every block: a block is whole words.
    const RowShifts<T> shifts =
        is_gathered() ? RowShifts<T>{0, 0}
                      : RowShifts<T>::of(weights_, p_.weights_stride[kSummed ? 2 : 3]);
    const WeightOperand<E, kAlong, kRows> operand(shifts, kSummed ? warp_row_ : warp_row_ % kRows);
    const bool alive = first_m_ + warp_row_ < end_m_;
    if (threadIdx.x == 0) some_are_not_finite() = false;
    Walk blocks{0, end_n_};
    walk_blocks(
        blocks, p_.stages,
        [&](const Block& block, int stage) {
          load_weights(block, stage);
          load_rows(row_tile(stage), padded(block.count), rows_ + block.begin * p_.rows.stride[2],
                    p_.rows, block.count, first_column_, p_.columns);
        },
        [&](const Block& block, int stage) {
          if (!kPlain && hidden_.differs_by_n()) {
            hide(block, stage, shifts);
            __syncthreads();
          }
          if (alive) add_products(block, stage, operand);
          if (!kPlain && alive && hidden_.differs_by_both() && some_are_not_finite())
            add_not_finite(block, stage, shifts);
        });
  }

  __device__ __forceinline__ void add_products(const Block& block, int stage,
                                               const WeightOperand<E, kAlong, kRows>& operand) {
    const Weights weights = weight_tile(stage, kSummed ? 0 : warp_row_ / kRows);
    const StraightOperand<E, kWidth> rows(row_tile(stage));
#pragma unroll E::kUnroll
    for (int step = 0; step < kRows / E::kStep; ++step) {
      if (step * E::kStep >= block.count) break;
      const typename E::A a = operand.at(weights, step);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        typename E::B b[2];
        rows.at(step, n / 2, b);
        E::multiply(sums_[n], a, b[0]);
        E::multiply(sums_[n + 1], a, b[1]);
      }
    }
  }

  // Rows to the end of their step: those that do not exist are zeros there.
  __device__ static int padded(int rows) { return (rows + E::kStep - 1) & -E::kStep; }

  // -- shared memory: a flag, then stages of weights and rows; at the end sums over them ---------

  __device__ bool& some_are_not_finite() const { return *reinterpret_cast<bool*>(shared_memory()); }
  __device__ T* tiles() const { return reinterpret_cast<T*>(shared_memory() + kFlagBytes); }
  __device__ T* stage_at(int stage) const {
    return tiles() + stage * Sizes::stage(kAlong, p_.warps);
  }
  __device__ Weights weight_tile(int stage, int panel) const {
    return {stage_at(stage) + panel * kRows * Weights::kPitch};
  }
  __device__ Tile<T, kWidth> row_tile(int stage) const {
    return {stage_at(stage) + Sizes::weights(kAlong, p_.warps)};
  }
  __device__ Staged staged() const { return {tiles() + warp_row_ * Staged::kPitch}; }

  __device__ bool is_gathered() const { return !kPlain && kSummed && p_.weights_stride[3] != 1; }

  // Calls fn(panel, rows there, columns there) for each panel of weights.
  template <class Fn>
  __device__ __forceinline__ void for_each_panel(const Block& block, Fn fn) const {
    const int sums = min(p_.warps * 16, end_m_ - first_m_);
    if (kSummed) return fn(0, sums, block.count);
    for (int panel = 0; panel * kRows < sums; ++panel)
      fn(panel, block.count, min(kRows, sums - panel * kRows));
  }

  __device__ __forceinline__ void load_weights(const Block& block, int stage) {
    const T* from = weights_ + block.begin * p_.weights_stride[3];
    for_each_panel(block, [&](int panel, int rows_there, int there) {
      const Weights to = weight_tile(stage, panel);
      const int64_t stride = p_.weights_stride[kSummed ? 2 : 3];
      if (is_gathered()) {
        gather_weights(to, rows_there, from, stride, p_.weights_stride[3], rows_there, there);
      } else if (kSummed) {  // a warp copies the rows of its own sums
        const int end = min(rows_there, warp_row_ + 16);
        copy_weights<sizeof(T) == 2 ? 4 : 1>(to,
                                             warp_row_ + static_cast<int>(threadIdx.x) % 32 / 16, 2,
                                             end, from, stride, end, there);
      } else {
        copy_weights<1>(to, static_cast<int>(threadIdx.x) / 16, static_cast<int>(blockDim.x) / 16,
                        padded(rows_there), from + panel * kRows, stride, rows_there, there);
      }
    });
  }

  // -- what is hidden ----------------------------------------------------------------------------

  __device__ T* weight(const RowShifts<T>& shifts, int stage, int m, int n) const {
    if (kSummed) return weight_tile(stage, 0).row(m) + shifts.at(m) + n;
    return weight_tile(stage, m / kRows).row(n) + shifts.at(n) + m % kRows;
  }

  // Weights of hidden pairs become zeros. So do rows that all sums skip; where only some do, a row
  // has no NaN or infinity left for a zero to meet, and add_not_finite adds those that are seen.
  __device__ __forceinline__ void hide(const Block& block, int stage, const RowShifts<T>& shifts) {
    for_each_panel(block, [&](int panel, int rows_there, int there) {
      const uint8_t* flags = hidden_.at(kSummed ? first_m_ : first_m_ + panel * kRows, block.begin);
      const Weights tile = weight_tile(stage, panel);
      for_each_hidden<kRows>(
          flags, hidden_.stride(kSummed), hidden_.stride(!kSummed),
          static_cast<int>(threadIdx.x) / 32, p_.warps, rows_there, there,
          [&](int row, int column) { tile.row(row)[shifts.at(row) + column] = T{}; });
    });
    using Layout = Tile<T, kWidth>;
    const bool by_both = hidden_.differs_by_both();
    for (int x = threadIdx.x; x < block.count * Layout::kChunks; x += blockDim.x) {
      const int row = x / Layout::kChunks;
      Chunk* chunk = reinterpret_cast<Chunk*>(row_tile(stage).chunk(row, x % Layout::kChunks));
      if (!by_both) {
        if (!hidden_.sees(first_m_, block.begin + row)) *chunk = Chunk{};
      } else if (drop_not_finite(*chunk) && is_seen(block.begin + row)) {
        some_are_not_finite() = true;
      }
    }
  }

  // By any sum of the block.
  __device__ bool is_seen(int n) const {
    const int end = min(first_m_ + p_.warps * 16, end_m_);
    for (int m = first_m_; m < end; ++m)
      if (hidden_.sees(m, n)) return true;
    return false;
  }

  // Whether there were any.
  __device__ static bool drop_not_finite(Chunk& chunk) {
    constexpr int kCount = 16 / sizeof(T);
    alignas(16) T values[kCount];
    *reinterpret_cast<Chunk*>(values) = chunk;
    bool found = false;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const Acc value = E::load(values[e]);
      const bool is_finite = value - value == 0;
      found |= !is_finite;
      if (!is_finite) values[e] = T{};
    }
    if (found) chunk = *reinterpret_cast<const Chunk*>(values);
    return found;
  }

  __device__ __forceinline__ void add_not_finite(const Block& block, int stage,
                                                 const RowShifts<T>& shifts) {
    const int lane = threadIdx.x % 32;
    for (int n = 0; n < block.count; ++n) {
      Acc weights[2];
      bool sees[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = warp_row_ + lane / 4 + 8 * r;
        sees[r] = first_m_ + m < end_m_ && hidden_.sees(first_m_ + m, block.begin + n);
        weights[r] = E::load(*weight(shifts, stage, m, n));
      }
      const T* row = rows_ + (block.begin + n) * p_.rows.stride[2];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = first_column_ + 8 * t + lane % 4 * 2 + e;
          const Acc value = column < p_.columns ? E::load(row[column]) : Acc(0);
          if (value - value == 0) continue;
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (sees[r]) sums_[t][2 * r + e] += weights[r] * value;
        }
    }
  }

  // -- results -----------------------------------------------------------------------------------

  __device__ void store() {
    const int lane = threadIdx.x % 32, rows = min(16, p_.size_m - first_m_ - warp_row_);
    if (rows <= 0) return;
    bool nothing[2], any = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = first_m_ + warp_row_ + lane / 4 + 8 * r;
      nothing[r] = m >= end_m_ || (!kPlain && hidden_.differs_by_m_alone() && !hidden_.sees(m, 0));
      any |= nothing[r];
    }
    // By choice, not by a product with 0: weights, or rows, may have been NaN.
    if (any)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (nothing[e / 2]) sums_[n][e] = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        E::store_pair(staged().element(lane / 4 + 8 * r, 8 * n + lane % 4 * 2), sums_[n][2 * r],
                      sums_[n][2 * r + 1]);
    __syncwarp();
    staged().store(rows, out_ + (warp_row_ * p_.out.stride[2] + first_column_), p_.out.stride[2],
                   min(kWidth, p_.columns - first_column_), p_.out.aligned);
  }

  const RowSum& p_;
  const PairMask hidden_;
  int first_m_, first_column_;
  int warp_row_;
  int end_m_, end_n_;
  const T* weights_;  // of the block's first sum
  const T* rows_;
  T* out_;
  Acc sums_[kTiles][4];
};

}  // namespace crossmodal::cuda
