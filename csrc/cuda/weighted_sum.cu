// Weighted sum, forward and backward: any strides, any head_dim, lengths, mask.
#include "cuda/weighted_sum.h"

#include <cstring>

#include "cuda/launch.h"
#include "cuda/number.h"

namespace crossmodal::cuda {
namespace {

constexpr int kBlockM = 8;
constexpr int kBlockN = 32;
constexpr int kBlockD = 128;

// A sum over rows of a matrix, weighted, for each (batch, head): out_m = sum_n weights_mn * rows_n.
// Forward sums values over keys; the gradient of values sums dout over queries. Hidden pairs of m
// and n are skipped.
struct RowSum {
  const void* weights;
  int64_t weights_stride[4];  // batch, head, m, n
  const void* rows;
  int64_t rows_stride[4];  // batch, head, n, column
  void* out;
  int64_t out_stride[4];
  const uint8_t* mask;
  int64_t mask_stride[4];  // as weights_stride
  const void* lengths;
  bool lengths_are_int64;
  bool lengths_count_m;  // whether keys are m, else n
  int64_t batch, num_heads, size_m, size_n, columns;
};

__device__ int64_t length_of(const void* lengths, bool are_int64, int64_t b, int64_t limit) {
  if (lengths == nullptr) return limit;
  const int64_t length =
      are_int64 ? static_cast<const int64_t*>(lengths)[b] : static_cast<const int32_t*>(lengths)[b];
  return min(max(length, int64_t{0}), limit);
}

// One block computes kBlockM rows x kBlockD columns; a thread owns one column, so that the rows
// that are summed are read once, in order, for all rows of the block. The block's weights pass
// through shared memory, kBlockN at a time. Acc: float for up to 32 bits, double for double.
template <class T, class Acc>
__global__ void __launch_bounds__(kBlockD) row_sum_kernel(const __grid_constant__ RowSum p) {
  struct Shared {
    alignas(16) Acc weights[kBlockN][kBlockM];
    alignas(8) bool visible[kBlockN][kBlockM];
  };
  static_assert(kBlockM == sizeof(uint64_t), "flags of a column are read as one word");
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory());

  const int64_t tiles_m = ceil_div(p.size_m, kBlockM), tiles_d = ceil_div(p.columns, kBlockD);
  const int64_t tiles = p.batch * p.num_heads * tiles_m * tiles_d;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t d = tile % tiles_d * kBlockD + threadIdx.x;
    const int64_t first_m = tile / tiles_d % tiles_m * kBlockM;
    const int64_t h = tile / (tiles_d * tiles_m) % p.num_heads;
    const int64_t b = tile / (tiles_d * tiles_m * p.num_heads);

    const T* weights =
        static_cast<const T*>(p.weights) + b * p.weights_stride[0] + h * p.weights_stride[1];
    const T* rows = static_cast<const T*>(p.rows) + b * p.rows_stride[0] + h * p.rows_stride[1];
    const uint8_t* mask = p.mask + b * p.mask_stride[0] + h * p.mask_stride[1];
    const int64_t keys = p.lengths_count_m ? p.size_m : p.size_n;
    const int64_t length = length_of(p.lengths, p.lengths_are_int64, b, keys);
    const int64_t end_m = p.lengths_count_m ? length : p.size_m;
    const int64_t end_n = p.lengths_count_m ? p.size_n : length;

    Acc sums[kBlockM] = {};
    for (int64_t first_n = 0; first_n < end_n; first_n += kBlockN) {
      __syncthreads();  // the tile of the previous round has been read
      for (int slot = threadIdx.x; slot < kBlockM * kBlockN; slot += kBlockD) {
        const int row = slot / kBlockN, column = slot % kBlockN;
        const int64_t m = first_m + row, n = first_n + column;
        bool visible = m < end_m && n < end_n;
        if (visible && p.mask != nullptr)
          visible = mask[m * p.mask_stride[2] + n * p.mask_stride[3]] != 0;
        shared.visible[column][row] = visible;
        shared.weights[column][row] =
            visible ? number<Acc>(weights[m * p.weights_stride[2] + n * p.weights_stride[3]])
                    : Acc{0};
      }
      __syncthreads();

      if (d < p.columns) {
        const int count = static_cast<int>(min(int64_t{kBlockN}, end_n - first_n));
        Acc block_sums[kBlockM] = {};
        for (int column = 0; column < count; ++column) {
          const Acc value =
              number<Acc>(rows[(first_n + column) * p.rows_stride[2] + d * p.rows_stride[3]]);
          uint64_t visible;
          memcpy(&visible, shared.visible[column], sizeof(visible));
#pragma unroll
          for (int row = 0; row < kBlockM; ++row) {
            const Acc weight = shared.weights[column][row];  // all of them: a few wide loads
            // What is hidden may be NaN, which a weight of zero would not silence.
            if (visible >> 8 * row & 1) block_sums[row] += weight * value;
          }
        }
        // Chains of kBlockN: longer ones round more.
#pragma unroll
        for (int row = 0; row < kBlockM; ++row) sums[row] += block_sums[row];
      }
    }

    if (d < p.columns) {
      T* out = static_cast<T*>(p.out) + b * p.out_stride[0] + h * p.out_stride[1];
#pragma unroll
      for (int row = 0; row < kBlockM; ++row) {
        const int64_t m = first_m + row;
        if (m < p.size_m) out[m * p.out_stride[2] + d * p.out_stride[3]] = rounded<T>(sums[row]);
      }
    }
  }
}

template <class T, class Acc>
void launch_row_sum(const RowSum& p, void* stream) {
  const int64_t tiles =
      p.batch * p.num_heads * ceil_div(p.size_m, kBlockM) * ceil_div(p.columns, kBlockD);
  launch("row_sum_kernel", row_sum_kernel<T, Acc>, tiles, kBlockD,
         kBlockN * kBlockM * (sizeof(Acc) + sizeof(bool)), stream, p);
}

// dweights_ij = <dout_i, values_j>: one block computes a square of them, a thread one, from columns
// that pass through shared memory.
constexpr int kSquare = 16;
constexpr int kColumns = 32;

template <class T, class Acc>
__global__ void __launch_bounds__(kSquare* kSquare)
    weight_gradient_kernel(const __grid_constant__ WeightedSumProblem p,
                           const __grid_constant__ WeightedSumBackward g) {
  struct Shared {
    Acc dout[kSquare][kColumns + 1];  // rows in different banks
    Acc values[kSquare][kColumns + 1];
  };
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory());

  const int64_t tiles_m = ceil_div(p.seqlen_q, kSquare), tiles_n = ceil_div(p.seqlen_k, kSquare);
  const int64_t tiles = p.batch * p.num_heads * tiles_m * tiles_n;
  const int row = threadIdx.x / kSquare, column = threadIdx.x % kSquare;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_j = tile % tiles_n * kSquare, first_i = tile / tiles_n % tiles_m * kSquare;
    const int64_t pair = tile / tiles_n / tiles_m, h = pair % p.num_heads, b = pair / p.num_heads;
    const int64_t length = length_of(p.lengths, p.lengths_are_int64, b, p.seqlen_k);
    const T* dout = static_cast<const T*>(g.dout) + b * g.dout_stride[0] + h * g.dout_stride[1];
    const T* values =
        static_cast<const T*>(p.values) + b * p.values_stride[0] + h * p.values_stride[1];

    Acc sum = 0;
    for (int64_t first = 0; first < p.head_dim; first += kColumns) {
      __syncthreads();  // the columns of the previous round have been read
      for (int slot = threadIdx.x; slot < kSquare * kColumns; slot += kSquare * kSquare) {
        const int r = slot / kColumns, c = slot % kColumns;
        const int64_t i = first_i + r, j = first_j + r, d = first + c;
        shared.dout[r][c] = i < p.seqlen_q && d < p.head_dim
                                ? number<Acc>(dout[i * g.dout_stride[2] + d * g.dout_stride[3]])
                                : Acc{0};
        shared.values[r][c] =
            j < length && d < p.head_dim
                ? number<Acc>(values[j * p.values_stride[2] + d * p.values_stride[3]])
                : Acc{0};
      }
      __syncthreads();
      Acc block_sum = 0;
      for (int c = 0; c < kColumns; ++c)
        block_sum += shared.dout[row][c] * shared.values[column][c];
      sum += block_sum;
    }

    const int64_t i = first_i + row, j = first_j + column;
    if (i >= p.seqlen_q || j >= p.seqlen_k) continue;
    bool visible = j < length;
    if (visible && p.mask != nullptr)
      visible = p.mask[b * p.mask_stride[0] + h * p.mask_stride[1] + i * p.mask_stride[2] +
                       j * p.mask_stride[3]] != 0;
    static_cast<T*>(g.dweights)[(pair * p.seqlen_q + i) * p.seqlen_k + j] =
        rounded<T>(visible ? sum : Acc{0});
  }
}

template <class T, class Acc>
void launch_weight_gradient(const WeightedSumProblem& p, const WeightedSumBackward& g,
                            void* stream) {
  const int64_t tiles =
      p.batch * p.num_heads * ceil_div(p.seqlen_q, kSquare) * ceil_div(p.seqlen_k, kSquare);
  launch("weight_gradient_kernel", weight_gradient_kernel<T, Acc>, tiles, kSquare * kSquare,
         2 * kSquare * (kColumns + 1) * sizeof(Acc), stream, p, g);
}

// Calls fn with values of the element and accumulator types.
template <class Fn>
void with_types(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(float{}, float{});
    case DType::kBFloat16:
      return fn(BFloat16{}, float{});
    case DType::kFloat16:
      return fn(Float16{}, float{});
    case DType::kFloat64:
      return fn(double{}, double{});
  }
}

void copy_strides(const int64_t (&from)[4], bool swapped, int64_t (&to)[4]) {
  to[0] = from[0];
  to[1] = from[1];
  to[2] = from[swapped ? 3 : 2];
  to[3] = from[swapped ? 2 : 3];
}

// What sums over keys and sums over queries have in common.
RowSum row_sum_of(const WeightedSumProblem& p, bool over_queries) {
  RowSum sum{};
  sum.weights = p.weights;
  copy_strides(p.weights_stride, over_queries, sum.weights_stride);
  sum.mask = p.mask;
  copy_strides(p.mask_stride, over_queries, sum.mask_stride);
  sum.lengths = p.lengths;
  sum.lengths_are_int64 = p.lengths_are_int64;
  sum.lengths_count_m = over_queries;
  sum.batch = p.batch;
  sum.num_heads = p.num_heads;
  sum.size_m = over_queries ? p.seqlen_k : p.seqlen_q;
  sum.size_n = over_queries ? p.seqlen_q : p.seqlen_k;
  sum.columns = p.head_dim;
  return sum;
}

}  // namespace

void weighted_sum_fwd(const WeightedSumProblem& p, void* stream) {
  RowSum sum = row_sum_of(p, false);
  sum.rows = p.values;
  copy_strides(p.values_stride, false, sum.rows_stride);
  sum.out = p.out;
  copy_strides(p.out_stride, false, sum.out_stride);
  with_types(p.dtype, [&](auto element, auto accumulator) {
    launch_row_sum<decltype(element), decltype(accumulator)>(sum, stream);
  });
}

void weighted_sum_bwd(const WeightedSumProblem& p, const WeightedSumBackward& g, void* stream) {
  RowSum sum = row_sum_of(p, true);
  sum.rows = g.dout;
  copy_strides(g.dout_stride, false, sum.rows_stride);
  sum.out = g.dvalues;
  const int64_t row = p.head_dim, head = p.seqlen_k * row;
  const int64_t contiguous[4] = {p.num_heads * head, head, row, 1};
  copy_strides(contiguous, false, sum.out_stride);
  with_types(p.dtype, [&](auto element, auto accumulator) {
    using T = decltype(element);
    using Acc = decltype(accumulator);
    if (g.dvalues) launch_row_sum<T, Acc>(sum, stream);
    if (g.dweights) launch_weight_gradient<T, Acc>(p, g, stream);
  });
}

}  // namespace crossmodal::cuda
