// What kernels over pairs of m and n are given for each (batch, head): rows of matrices, and which
// pairs are hidden. How rows get to shared memory, and results from there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/sample.h"
#include "cuda/tile.h"

namespace crossmodal::cuda {

// Rows of neighbouring columns. Data: void or const void.
template <class Data>
struct MatrixRows {
  Data* data;
  int64_t stride[3];  // batch, head, row
  bool aligned;       // all rows begin at multiples of 16 bytes

  template <class T>
  __device__ T* at(uint32_t b, uint32_t h, uint32_t row) const {
    return static_cast<T*>(data) + (b * stride[0] + h * stride[1] + row * stride[2]);
  }
};

// Begins the copies of columns [first, first + kWidth) of rows that follow `from`, `there` of them;
// what is left of `rows` rows, and of the columns, is zeros. The whole block takes part.
template <class T, int kWidth>
__device__ __forceinline__ void load_rows(const Tile<T, kWidth>& to, int rows, const T* from,
                                          const MatrixRows<const void>& matrix, int there,
                                          int first, int columns) {
  using Layout = Tile<T, kWidth>;
  if (!matrix.aligned) {
    load_tile(to, 1, rows, {from, matrix.stride[2], columns, false}, first,
              [&](int row) { return row < there; });
    return;
  }
  // A thread stays in its column of 16 bytes.
  const int c = threadIdx.x % Layout::kChunks, column = first + c * Layout::kPerChunk;
  const int bytes = min(16, max(0, (columns - column) * static_cast<int>(sizeof(T))));
  const int step = blockDim.x / Layout::kChunks;
  int row = threadIdx.x / Layout::kChunks;
  from += column + row * matrix.stride[2];
  const int64_t stride = step * matrix.stride[2];
#pragma unroll 1
  for (; row < rows; row += step, from += stride)
    copy_async(to.chunk(row, c), from, row < there ? bytes : 0);
}

// Rows of kColumns elements that a warp puts together in shared memory before it writes them,
// neighbours by neighbours. An odd number of words of 16 bytes to a row: eight rows begin in
// different banks.
template <class T, int kColumns>
struct StagedRows {
  static constexpr int kPerChunk = 16 / sizeof(T);
  static constexpr int kPitch = kColumns + kPerChunk;
  static_assert(kPitch / kPerChunk % 2 == 1, "rows in different banks");

  T* data;

  __device__ T* element(int row, int column) const { return data + row * kPitch + column; }

  // The first `count` columns of `rows` rows, by one warp. Where `aligned`, rows in memory begin at
  // multiples of 16 bytes.
  __device__ __forceinline__ void store(int rows, T* to, int64_t stride, int count,
                                        bool aligned) const {
    constexpr int kChunks = kColumns / kPerChunk, kTogether = 32 / kChunks;  // rows
    const int lane = threadIdx.x % 32;
    if constexpr (32 % kChunks == 0) {
      if (aligned && count % kPerChunk == 0) {
        const int c = lane % kChunks;
        if (c * kPerChunk >= count) return;
        int row = lane / kChunks;
        to += row * stride + c * kPerChunk;
        const T* from = element(row, c * kPerChunk);
#pragma unroll 4
        for (; row < rows; row += kTogether, to += kTogether * stride, from += kTogether * kPitch)
          *reinterpret_cast<Chunk*>(to) = *reinterpret_cast<const Chunk*>(from);
        return;
      }
    }
    const T* from = data + lane;
    to += lane;
#pragma unroll 4
    for (int row = 0; row < rows; ++row, to += stride, from += kPitch)
#pragma unroll
      for (int c = 0; c < kColumns; c += 32)
        if (c + lane < count) to[c] = from[c];
  }
};

struct HiddenPairs {
  const uint8_t* mask;     // 0: hidden; null: none is
  int64_t mask_stride[4];  // batch, head, m, n
  const void* lengths;     // of each sample, what lies beyond is hidden; null: nothing is
  bool lengths_are_int64;  // else int32
  bool lengths_count_m;    // else n

  __device__ int length(uint32_t b, int size) const {
    return lengths ? length_at(lengths, lengths_are_int64, b, size) : size;
  }
};

// The mask of one (batch, head).
class PairMask {
 public:
  __device__ PairMask(const HiddenPairs& p, uint32_t b, uint32_t h)
      : mask_(p.mask ? p.mask + (b * p.mask_stride[0] + h * p.mask_stride[1]) : nullptr),
        stride_m_(p.mask_stride[2]),
        stride_n_(p.mask_stride[3]) {}

  __device__ bool exists() const { return mask_ != nullptr; }
  __device__ bool differs_by_n() const { return exists() && stride_n_ != 0; }
  __device__ bool differs_by_both() const { return differs_by_n() && stride_m_ != 0; }
  __device__ bool differs_by_m_alone() const { return exists() && stride_n_ == 0; }

  // Where there is a mask.
  __device__ bool sees(int m, int n) const { return *at(m, n) != 0; }
  __device__ const uint8_t* at(int m, int n) const {
    return mask_ + (m * stride_m_ + n * stride_n_);
  }
  __device__ int64_t stride(bool along_m) const { return along_m ? stride_m_ : stride_n_; }

 private:
  const uint8_t* mask_;
  int64_t stride_m_, stride_n_;
};

// Calls fn(row, column) where a flag is 0: of `there` columns, at most kColumns, side by side in
// the lanes of a warp, in every `step`-th row from `first` on. Flags of several rows are under way
// at once, as numbers, since predicates are few.
template <int kColumns, class Fn>
__device__ __forceinline__ void for_each_hidden(const uint8_t* flags, int64_t row_stride,
                                                int64_t column_stride, int first, int step,
                                                int rows, int there, Fn fn) {
  constexpr int kTogether = 8, kParts = (kColumns + 31) / 32;
  const int lane = threadIdx.x % 32;
  flags += lane * column_stride;
#pragma unroll 1
  for (; first < rows; first += kTogether * step) {
    uint32_t seen[kTogether][kParts];
#pragma unroll
    for (int x = 0; x < kTogether; ++x)
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int row = first + x * step, column = 32 * part;
        const bool exists = row < rows && column + lane < there;
        seen[x][part] = exists ? flags[row * row_stride + column * column_stride] : 1;
      }
#pragma unroll
    for (int x = 0; x < kTogether; ++x)
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (seen[x][part] == 0) fn(first + x * step, 32 * part + lane);
  }
}

}  // namespace crossmodal::cuda
