// A tile of matrix rows in shared memory: panels of kWidth columns, rows of 16-byte chunks whose
// places are permuted by row, so that eight rows of one column of chunks lie in eight different
// groups of banks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx.h"

namespace crossmodal::cuda {

struct alignas(16) Chunk {
  uint32_t words[4];
};

template <class T, int kWidth>
struct Tile {
  static constexpr int kPerChunk = 16 / sizeof(T);
  static constexpr int kChunks = kWidth / kPerChunk;  // of a row
  static_assert(kWidth % kPerChunk == 0, "rows are whole chunks");

  // Rows whose chunks already start in different banks need no permutation: an odd number of chunks
  // to a row gives eight of them, twice an odd number gives four, and so on.
  static constexpr int kSwizzleBits = kChunks % 8 == 0   ? 3
                                      : kChunks % 4 == 0 ? 2
                                      : kChunks % 2 == 0 ? 1
                                                         : 0;

  T* data;

  __device__ T* chunk(int row, int c) const {
    const int place = c ^ (row >> (3 - kSwizzleBits) & ((1 << kSwizzleBits) - 1));
    return data + (row * kChunks + place) * kPerChunk;
  }
  __device__ T* element(int row, int column) const {
    return chunk(row, column / kPerChunk) + column % kPerChunk;
  }
  // Of chunk c + lane_c, 0 or 1, of row + lane_row: with c even and rows in eights, what a lane
  // adds is permuted alone, and of all that follows from constants nothing is left but one
  // operation or a number in the instruction.
  __device__ SharedAddress address(int row, int c, int lane_row, int lane_c) const {
    constexpr int kPermuted = 1 << kSwizzleBits;
    const SharedAddress lane = shared_address(chunk(lane_row, lane_c));
    return (lane ^ c % kPermuted * 16) + (row * kChunks + c / kPermuted * kPermuted) * 16;
  }
  __device__ Tile panel(int index, int rows) const { return {data + index * rows * kWidth}; }
};

// Rows of a matrix in global memory.
template <class T>
struct GlobalRows {
  const T* base;
  int64_t stride;  // elements from row to row
  int width;
  bool aligned;  // all rows begin at multiples of 16 bytes
};

// Fills `rows` rows of `panels` panels: columns from `first` on of row r where wanted(r), zeros
// elsewhere. The whole block takes part; its copies are to be committed and waited for.
template <class T, int kWidth, class Wanted>
__device__ __forceinline__ void load_tile(const Tile<T, kWidth>& tile, int panels, int rows,
                                          const GlobalRows<T>& from, int first, Wanted wanted) {
  using Layout = Tile<T, kWidth>;
  // Elements of a chunk that begins there.
  const auto elements_at = [&](int column) {
    return min(Layout::kPerChunk, max(0, from.width - column));
  };
  for (int panel = 0; panel < panels; ++panel) {
    const Layout to = tile.panel(panel, rows);
    if (from.aligned) {
      // A warp copies whole rows, a lane always the same chunk of them: all that a row takes is a
      // step of its pointer and its place in the permutation.
      constexpr int kRowsAtOnce = 32 / Layout::kChunks;
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
      const int c = lane % Layout::kChunks;
      const int column = first + panel * kWidth + c * Layout::kPerChunk;
      int row = warp * kRowsAtOnce + lane / Layout::kChunks;
      if (32 % Layout::kChunks != 0 && lane / Layout::kChunks == kRowsAtOnce) row = rows;
      const T* source = from.base + row * from.stride + column;
      const int64_t step = warps * kRowsAtOnce * from.stride;
      if (from.width % Layout::kPerChunk == 0) {
        const bool there = column < from.width;
        const int rows_at_once = warps * kRowsAtOnce;
        if (sizeof(T) == 2 && rows_at_once % 8 == 0) {
          // Every row of a lane is permuted alike, so that its place moves by a constant, too.
          SharedAddress place = shared_address(to.chunk(row, c));
#pragma unroll 1
          while (row < rows)
#pragma unroll
            for (int n = 0; n < 2; ++n) {
              if (n == 0 || row < rows) copy_async_if(there && wanted(row), place, source);
              row += rows_at_once;
              place += rows_at_once * kWidth * sizeof(T);
              source += step;
            }
        } else {
#pragma unroll 1
          for (; row < rows; row += rows_at_once, source += step)
            copy_async_if(there && wanted(row), shared_address(to.chunk(row, c)), source);
        }
      } else {
        const int bytes = elements_at(column) * static_cast<int>(sizeof(T));
#pragma unroll 1
        for (; row < rows; row += warps * kRowsAtOnce, source += step)
          copy_async(to.chunk(row, c), source, wanted(row) ? bytes : 0);
      }
      continue;
    }
    for (int x = threadIdx.x; x < rows * Layout::kChunks; x += blockDim.x) {
      const int row = x / Layout::kChunks, c = x % Layout::kChunks;
      const int column = first + panel * kWidth + c * Layout::kPerChunk;
      const int there = wanted(row) ? elements_at(column) : 0;
      const T* source = there > 0 ? from.base + row * from.stride + column : from.base;
      alignas(16) T values[Layout::kPerChunk] = {};
#pragma unroll
      for (int e = 0; e < Layout::kPerChunk; ++e)
        if (e < there) values[e] = source[e];
      *reinterpret_cast<Chunk*>(to.chunk(row, c)) = *reinterpret_cast<const Chunk*>(values);
    }
  }
}

// Columns [first, first + kWidth) of rows [begin, begin + rows) of a one-panel tile to global
// memory, by one warp.
template <class T, int kWidth>
__device__ __forceinline__ void store_tile(const Tile<T, kWidth>& tile, int begin, int rows, T* to,
                                           int64_t stride, int first, int width, bool aligned,
                                           int lane) {
  using Layout = Tile<T, kWidth>;
  for (int x = lane; x < rows * Layout::kChunks; x += 32) {
    const int row = x / Layout::kChunks, c = x % Layout::kChunks;
    const int column = first + c * Layout::kPerChunk;
    const int there = min(Layout::kPerChunk, width - column);
    if (there <= 0) continue;
    const T* values = tile.chunk(begin + row, c);
    T* target = to + row * stride + column;
    if (aligned && there == Layout::kPerChunk) {
      *reinterpret_cast<Chunk*>(target) = *reinterpret_cast<const Chunk*>(values);
    } else {
      for (int e = 0; e < there; ++e) target[e] = values[e];
    }
  }
}

}  // namespace crossmodal::cuda
