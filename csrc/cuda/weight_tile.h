// Given weights in shared memory, as they stand in global memory: rows are copied in whole words of
// 16 bytes, so that the first element of a row lies as far into its first word as it does there.
// Rows of 77 half-precision numbers, of which one in eight begins at a multiple of 16 bytes, are
// copied as fast as any.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/engine.h"

namespace crossmodal::cuda {

// Rows of up to kColumns elements. An odd number of words to a row puts eight rows of one column of
// words into eight different groups of banks.
template <class T, int kColumns>
struct WeightTile {
  static constexpr int kPerWord = 16 / sizeof(T);
  static constexpr int kWords = kColumns / kPerWord + 1;
  static constexpr int kPitch = kWords * kPerWord;
  static_assert(kColumns % kPerWord == 0 && kWords % 2 == 1, "rows in different banks");

  T* data;

  __device__ T* row(int r) const { return data + r * kPitch; }
};

// How many elements into its first word a row begins. Repeats itself from word to word: kPerWord
// rows on, a row begins where this one does.
template <class T>
struct RowShifts {
  static constexpr int kPerWord = 16 / sizeof(T);

  int first, step;

  // Of rows that lie `stride` elements apart.
  __device__ static RowShifts of(const T* base, int64_t stride) {
    return {static_cast<int>(reinterpret_cast<uintptr_t>(base) / sizeof(T) % kPerWord),
            static_cast<int>(stride & (kPerWord - 1))};
  }
  __device__ int at(int row) const { return first + row * step & (kPerWord - 1); }
  __device__ bool none() const { return (first | step) == 0; }
};

// Begins the copies of `there` elements each of `rows_there` rows; the other elements up to
// kColumns, and the rows up to `rows`, become zeros. Half a warp copies a row; the callers' one is
// `row`, and `step` rows on its next.
template <int kUnroll, class T, int kColumns>
__device__ __forceinline__ void copy_weights(const WeightTile<T, kColumns>& to, int row, int step,
                                             int rows, const T* from, int64_t stride,
                                             int rows_there, int there) {
  using Layout = WeightTile<T, kColumns>;
  static_assert(Layout::kWords <= 16, "a lane to a word");
  const int word = threadIdx.x % 16;
  if (word >= Layout::kWords) return;
  const int left = there * static_cast<int>(sizeof(T)) - word * 16;
  const char* begin = reinterpret_cast<const char*>(from + row * stride);
  T* target = to.row(row) + word * Layout::kPerWord;
  const int64_t bytes_on = step * stride * static_cast<int64_t>(sizeof(T));
#pragma unroll kUnroll
  for (; row < rows; row += step, begin += bytes_on, target += step * Layout::kPitch) {
    const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % 16);
    copy_async(target, begin - shift + word * 16,
               row < rows_there ? max(0, min(16, shift + left)) : 0);
  }
}

// The same element by element, where neighbours in a row are not neighbours in memory. Every row of
// the tile begins with its first element.
template <class T, int kColumns>
__device__ __forceinline__ void gather_weights(const WeightTile<T, kColumns>& to, int rows,
                                               const T* from, int64_t stride, int64_t column_stride,
                                               int rows_there, int there) {
#pragma unroll 4
  for (int x = threadIdx.x; x < rows * kColumns; x += blockDim.x) {
    const int row = x / kColumns, column = x % kColumns;
    const bool is_there = row < rows_there && column < there;
    to.row(row)[column] = is_there ? from[row * stride + column * column_stride] : T{};
  }
}

// Which dimension of the weights is that of neighbours in the tile: the one that is summed over, or
// that of the sums.
enum class Along { kSummed, kSums };

// Operands of one warp: its 16 sums by kStep rows that are summed. Where they stand is computed
// once.
template <class E, Along kAlong, int kColumns>
class WeightOperand {
  using T = typename E::Element;
  using Layout = WeightTile<T, kColumns>;
  static constexpr bool kMatrices = E::kStep == 16;  // loaded as such, where rows are not shifted
  static constexpr bool kSummed = kAlong == Along::kSummed;
  static constexpr int kPerWord = Layout::kPerWord, kPitch = Layout::kPitch;
  static constexpr int kOffsets = kSummed ? 1 : kMatrices ? 2 : kPerWord;

 public:
  // Sums from `m` on.
  __device__ WeightOperand(RowShifts<T> shifts, int m) : shifted_(!shifts.none()) {
    const int lane = threadIdx.x % 32;
    const int sum = m + lane / 4;
    if (kMatrices && !shifted_) {
      offsets_[0] = kSummed ? (m + lane % 16) * kPitch + lane / 16 * 8
                            : (lane % 8 + lane / 16 * 8) * kPitch + m + lane / 8 % 2 * 8;
    } else if (kSummed) {
      offsets_[0] = sum * kPitch + shifts.at(sum) + (kMatrices ? lane % 4 * 2 : 0);
    } else {
#pragma unroll
      for (int x = 0; x < kOffsets; ++x) {
        const int row = kMatrices ? lane % 4 * 2 + x : x;
        offsets_[x] = row * kPitch + shifts.at(row) + sum;
      }
    }
  }

  __device__ __forceinline__ typename E::A at(const Layout& x, int step) const {
    const T* from = x.data + step * E::kStep * (kSummed ? 1 : kPitch);
    typename E::A a;
    if constexpr (kMatrices) {
      if (!shifted_) {
        if constexpr (kSummed) {
          load_matrices(a.r, shared_address(from + offsets_[0]));
        } else {
          load_matrices_transposed(a.r, shared_address(from + offsets_[0]));
        }
        return a;
      }
      // Registers of sums l / 4 and l / 4 + 8, in rows of 2 * (l % 4) and the next, then 8 on.
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int sum = r % 2 * 8, row = r / 2 * 8;
        const int place = kSummed ? sum * kPitch + row : row * kPitch + sum;
        const T low = from[offsets_[0] + place];
        const T high = from[offsets_[kOffsets - 1] + place + (kSummed ? 1 : 0)];
        a.r[r] = low.bits | static_cast<uint32_t>(high.bits) << 16;
      }
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int k = 0; k < E::kStep; ++k)
          a.v[r][k] = kSummed ? from[offsets_[0] + 8 * r * kPitch + k]
                              : from[offsets_[k % kOffsets] + (k - k % kOffsets) * kPitch + 8 * r];
    }
    return a;
  }

 private:
  bool shifted_;
  int offsets_[kOffsets];
};

}  // namespace crossmodal::cuda
