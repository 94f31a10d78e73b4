// What multiplies: matrix instructions on half-precision numbers, and on floats where tf32 will do,
// or multiply-adds on float and double, behind one interface. Kernels are templates over it.
//
// A warp computes 16 rows. Accumulators come in tiles of 16 x 8, of which lane l holds four: rows
// l / 4 and l / 4 + 8 in columns 2 * (l % 4) and the next. Products begin at rows and columns that
// are multiples of 8 and of kStep, and step along their inner dimension kStep at a time:
//
//   A rows(tile, row, column)       tile[row + (0..15)][column + (0..kStep - 1)]
//   A of_accumulators(c, step)      columns [step * kStep, (step + 1) * kStep) of accumulators
//   transposed(tile, row, column)   B t: tile[row + 8 t + n][column + k] for c += A * tile^T;
//                                   one, of matrix instructions two
//   straight(tile, row, column)     two B: tile[row + k][column + 8 t + n] for c += A * tile;
//                                   where only numbers are asked for, 0 for what is none
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/tile.h"

namespace crossmodal::cuda {

// Two numbers, 0 in the place of NaN and Inf.
template <class T>
__device__ inline uint32_t without_non_finite(T, uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same_v<T, BFloat16> ? 0x7f80u : 0x7c00u;
  if ((pair & kExponent) == kExponent) pair &= 0xffff0000u;
  if ((pair >> 16 & kExponent) == kExponent) pair &= 0xffffu;
  return pair;
}

template <class T>
struct MmaEngine {
  using Element = T;
  using Acc = float;
  static constexpr int kStep = 16;
  static constexpr int kUnroll = 8;  // steps of a product whose loads may be under way at once

  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  template <int kWidth>
  __device__ static A rows(const Tile<T, kWidth>& x, int row, int column) {
    const int lane = threadIdx.x % 32;
    A a;
    load_matrices(a.r, x.address(row, column / 8, lane % 16, lane / 16));
    return a;
  }

  template <int kTiles>
  __device__ static A of_accumulators(const float (&c)[kTiles][4], int step) {
    const float (&left)[4] = c[2 * step], (&right)[4] = c[2 * step + 1];
    return {{pack(T{}, left[0], left[1]), pack(T{}, left[2], left[3]),
             pack(T{}, right[0], right[1]), pack(T{}, right[2], right[3])}};
  }

  template <int kWidth>
  __device__ static void transposed(const Tile<T, kWidth>& x, int row, int column, B (&b)[2]) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_matrices(r, x.address(row, column / 8, lane % 8 + lane / 16 * 8, lane / 8 % 2));
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }

  template <int kWidth>
  __device__ static void straight(const Tile<T, kWidth>& x, int row, int column, bool finite,
                                  B (&b)[2]) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_matrices_transposed(r, x.address(row, column / 8, lane % 16, lane / 16));
    if (finite)
#pragma unroll
      for (int x = 0; x < 4; ++x) r[x] = without_non_finite(T{}, r[x]);
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }

  __device__ static void multiply(float (&c)[4], const A& a, const B& b) {
    multiply_add(T{}, c, a.r, b.r[0], b.r[1]);
  }

  // Neighbours in memory.
  __device__ static void store_pair(T* to, float low, float high) {
    *reinterpret_cast<uint32_t*>(to) = pack(T{}, low, high);
  }
  __device__ static float load(const T& x) { return to_float(x); }
};

// Floats whose factors are rounded to tf32: ten bits of them count.
struct Tf32Engine {
  using Element = float;
  using Acc = float;
  static constexpr int kStep = 8;
  static constexpr int kUnroll = 4;

  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  template <int kCount>
  __device__ static void round(uint32_t (&r)[kCount]) {
#pragma unroll
    for (int x = 0; x < kCount; ++x) r[x] = round_to_tf32(r[x]);
  }

  // Matrices of eight rows of 16 bytes: four floats are eight halves to them.
  template <int kWidth>
  __device__ static A rows(const Tile<float, kWidth>& x, int row, int column) {
    const int lane = threadIdx.x % 32;
    A a;
    load_matrices(a.r, x.address(row, column / 4, lane % 16, lane / 16));
    round(a.r);
    return a;
  }

  // Columns 0, 2, 4, 6, then 1, 3, 5, 7 of the step: the order of a sum's terms is free, and
  // straight() reads rows in this one.
  template <int kTiles>
  __device__ static A of_accumulators(const float (&c)[kTiles][4], int step) {
    A a = {{__float_as_uint(c[step][0]), __float_as_uint(c[step][2]), __float_as_uint(c[step][1]),
            __float_as_uint(c[step][3])}};
    round(a.r);
    return a;
  }

  template <int kWidth>
  __device__ static void transposed(const Tile<float, kWidth>& x, int row, int column, B (&b)[2]) {
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    load_matrices(r, x.address(row, column / 4, lane % 8 + lane / 16 * 8, lane / 8 % 2));
    round(r);
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }

  template <int kWidth>
  __device__ static void straight(const Tile<float, kWidth>& x, int row, int column, bool finite,
                                  B (&b)[2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = *x.element(row + lane % 4 * 2 + e, column + 8 * t + lane / 4);
        b[t].r[e] = __float_as_uint(finite && value - value != 0 ? 0.0f : value);
      }
      round(b[t].r);
    }
  }

  __device__ static void multiply(float (&c)[4], const A& a, const B& b) {
    multiply_add(TensorFloat32{}, c, a.r, b.r[0], b.r[1]);
  }

  __device__ static void store_pair(float* to, float low, float high) {
    to[0] = low;
    to[1] = high;
  }
  __device__ static float load(const float& x) { return x; }
};

// Exact in the type's own precision, which tf32 instructions, three to a product, are not: they sum
// in an accumulator that truncates.
template <class T>
struct FmaEngine {
  using Element = T;
  using Acc = T;
  static constexpr int kStep = 8;
  static constexpr int kUnroll = 1;

  struct A {
    T v[2][kStep];  // rows l / 4 and l / 4 + 8
  };
  struct B {
    T v[2][kStep];  // columns 2 * (l % 4) and the next
  };

  template <int kWidth>
  __device__ static void read_row(const Tile<T, kWidth>& x, int row, int column, T (&v)[kStep]) {
    constexpr int kPerChunk = Tile<T, kWidth>::kPerChunk;
#pragma unroll
    for (int k = 0; k < kStep; k += kPerChunk) {
      alignas(16) T values[kPerChunk];
      *reinterpret_cast<Chunk*>(values) =
          *reinterpret_cast<const Chunk*>(x.chunk(row, (column + k) / kPerChunk));
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e) v[k + e] = values[e];
    }
  }

  template <int kWidth>
  __device__ static A rows(const Tile<T, kWidth>& x, int row, int column) {
    const int lane = threadIdx.x % 32;
    A a;
    read_row(x, row + lane / 4, column, a.v[0]);
    read_row(x, row + lane / 4 + 8, column, a.v[1]);
    return a;
  }

  // Each lane needs whole rows, of which it holds a quarter.
  template <int kTiles>
  __device__ static A of_accumulators(const T (&c)[kTiles][4], int step) {
    const int quad = threadIdx.x % 32 & ~3;
    A a;
#pragma unroll
    for (int k = 0; k < kStep; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        a.v[r][k] = __shfl_sync(0xffffffffu, c[step][2 * r + k % 2], quad + k / 2);
    return a;
  }

  template <int kWidth, int kCount>
  __device__ static void transposed(const Tile<T, kWidth>& x, int row, int column, B (&b)[kCount]) {
    const int lane = threadIdx.x % 32;
    keep_loads_here();
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) read_row(x, row + 8 * t + lane % 4 * 2 + e, column, b[t].v[e]);
  }

  template <int kWidth>
  __device__ static void straight(const Tile<T, kWidth>& x, int row, int column, bool finite,
                                  B (&b)[2]) {
    const int lane = threadIdx.x % 32;
    keep_loads_here();
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        const T* pair = x.element(row + k, column + 8 * t + lane % 4 * 2);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const T value = pair[e];
          b[t].v[e][k] = finite && value - value != 0 ? T(0) : value;
        }
      }
  }

  // Eight products are summed before they meet the accumulator: shorter chains round less.
  __device__ static void multiply(T (&c)[4], const A& a, const B& b) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        T sum = a.v[r][0] * b.v[e][0];
#pragma unroll
        for (int k = 1; k < kStep; ++k) sum += a.v[r][k] * b.v[e][k];
        c[2 * r + e] += sum;
      }
  }

  __device__ static void store_pair(T* to, T low, T high) {
    to[0] = low;
    to[1] = high;
  }
  __device__ static T load(const T& x) { return x; }
};

// c += rows [row, row + 16) of `a` times rows [0, 8 * kTiles) of `b`, transposed; over panels of
// kWidth columns.
template <class E, int kWidth, int kTiles>
__device__ __forceinline__ void multiply_rows(typename E::Acc (&c)[kTiles][4],
                                              const Tile<typename E::Element, kWidth>& a, int row,
                                              int rows_a,
                                              const Tile<typename E::Element, kWidth>& b,
                                              int rows_b, int panels) {
  constexpr int kTogether = kTiles % 2 == 0 ? 2 : 1;
  for (int panel = 0; panel < panels; ++panel) {
    const auto left = a.panel(panel, rows_a), right = b.panel(panel, rows_b);
#pragma unroll E::kUnroll
    for (int k = 0; k < kWidth; k += E::kStep) {
      const typename E::A operand = E::rows(left, row, k);
#pragma unroll
      for (int n = 0; n < kTiles; n += kTogether) {
        typename E::B columns[kTogether];
        E::transposed(right, 8 * n, k, columns);
#pragma unroll
        for (int t = 0; t < kTogether; ++t) E::multiply(c[n + t], operand, columns[t]);
      }
    }
  }
}

// The same for the first `count` rows of `b`, in pairs of tiles; other accumulators stay as they
// are. Where most rows are there multiply_rows is faster, which has more products under way.
template <class E, int kWidth, int kTiles>
__device__ __forceinline__ void multiply_some_rows(typename E::Acc (&c)[kTiles][4],
                                                   const Tile<typename E::Element, kWidth>& a,
                                                   int row, int rows_a,
                                                   const Tile<typename E::Element, kWidth>& b,
                                                   int rows_b, int panels, int count) {
  static_assert(kTiles % 2 == 0, "pairs of tiles");
#pragma unroll
  for (int n = 0; n < kTiles; n += 2)
    if (8 * n < count)
#pragma unroll 1
      for (int panel = 0; panel < panels; ++panel) {
        const auto left = a.panel(panel, rows_a), right = b.panel(panel, rows_b);
#pragma unroll E::kUnroll
        for (int k = 0; k < kWidth; k += E::kStep) {
          const typename E::A operand = E::rows(left, row, k);
          typename E::B pair[2];
          E::transposed(right, 8 * n, k, pair);
          E::multiply(c[n], operand, pair[0]);
          E::multiply(c[n + 1], operand, pair[1]);
        }
      }
}

// c += weights, held as accumulators, times the first `count` rows of `b`, in steps; weights of
// others are 0. Where `finite`, non-finite elements of b count as 0.
template <class E, int kWidth, int kInner, int kTiles>
__device__ __forceinline__ void multiply_weights(typename E::Acc (&c)[kTiles][4],
                                                 const typename E::Acc (&weights)[kInner][4],
                                                 const Tile<typename E::Element, kWidth>& b,
                                                 bool finite = false, int count = kInner * 8) {
  static_assert(kTiles == kWidth / 8, "accumulators are as wide as the tile");
#pragma unroll
  for (int step = 0; step < kInner * 8 / E::kStep; ++step) {
    if (step * E::kStep < count) {
      const typename E::A operand = E::of_accumulators(weights, step);
#pragma unroll
      for (int n = 0; n < kTiles / 2; ++n) {
        typename E::B pair[2];
        E::straight(b, step * E::kStep, 16 * n, finite, pair);
        E::multiply(c[2 * n], operand, pair[0]);
        E::multiply(c[2 * n + 1], operand, pair[1]);
      }
    }
  }
}

}  // namespace crossmodal::cuda
