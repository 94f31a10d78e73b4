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
    if constexpr (32 % Layout::kChunks == 0) {
      if (from.aligned) {  // each thread stays in its column: next to nothing is computed for a row
        const int c = threadIdx.x % Layout::kChunks;
        const int column = first + panel * kWidth + c * Layout::kPerChunk;
        const int bytes = elements_at(column) * static_cast<int>(sizeof(T));
#pragma unroll 1
        for (int row = threadIdx.x / Layout::kChunks; row < rows;
             row += blockDim.x / Layout::kChunks)
          copy_async(to.chunk(row, c), from.base + column + row * from.stride,
                     wanted(row) ? bytes : 0);
        continue;
      }
    }
    for (int x = threadIdx.x; x < rows * Layout::kChunks; x += blockDim.x) {
      const int row = x / Layout::kChunks, c = x % Layout::kChunks;
      const int column = first + panel * kWidth + c * Layout::kPerChunk;
      const int there = wanted(row) ? elements_at(column) : 0;
      const T* source = there > 0 ? from.base + row * from.stride + column : from.base;
      if (from.aligned) {
        copy_async(to.chunk(row, c), source, there * static_cast<int>(sizeof(T)));
      } else {
        alignas(16) T values[Layout::kPerChunk] = {};
#pragma unroll
        for (int e = 0; e < Layout::kPerChunk; ++e)
          if (e < there) values[e] = source[e];
        *reinterpret_cast<Chunk*>(to.chunk(row, c)) = *reinterpret_cast<const Chunk*>(values);
      }
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
