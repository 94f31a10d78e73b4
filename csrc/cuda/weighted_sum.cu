// Weighted sum, forward and backward: any strides, any head_dim, lengths, mask.
#include "cuda/weighted_sum.h"

#include <limits>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/row_products.h"
#include "cuda/row_sum.h"

namespace crossmodal::cuda {
namespace {

constexpr uint32_t kMaxGridY = 65535;

// What registers have to leave room for: warps to a block, blocks to a multiprocessor.
struct Occupancy {
  int warps, blocks;
};

// 13 tiles of 16 rows, of 197, are two blocks of 7 warps; an eighth would cost each 16 registers.
template <class E>
constexpr Occupancy of_products() {
  constexpr size_t kSize = sizeof(typename E::Element);
  return {7, kSize == 2 ? 3 : kSize == 4 ? 2 : 1};
}
// In half precision 5 warps, 80 sums, are one panel of weights.
template <class E>
constexpr Occupancy of_sums(Along along, bool plain) {
  constexpr bool kIsHalf = sizeof(typename E::Element) == 2;
  if (kIsHalf && along == Along::kSums) return {5, plain ? 4 : 3};
  constexpr int kPlainBlocks = of_products<E>().blocks;
  return {7, plain ? kPlainBlocks : std::max(1, kPlainBlocks - 1)};
}

// A grid has a column for each (batch, head), whose blocks are neighbours in time: what they read
// together comes from the second-level cache.
template <class Problem, class Fn>
__device__ __forceinline__ void for_each_pair(const Problem& p, Fn fn) {
  for (uint32_t pair = blockIdx.y; pair < p.pairs; pair += gridDim.y) {
    if (pair != blockIdx.y) __syncthreads();  // the tiles have been read
    const uint32_t b = p.heads_in.quotient(pair);
    fn(pair, b, pair - b * p.num_heads);
  }
}

template <class E, Along kAlong, bool kPlain>
__global__ void __launch_bounds__(of_sums<E>(kAlong, kPlain).warps * 32,
                                  of_sums<E>(kAlong, kPlain).blocks)
    row_sum_kernel(const __grid_constant__ RowSum p) {
  const int tile = static_cast<int>(p.chunks_in.quotient(blockIdx.x));
  const int chunk = static_cast<int>(blockIdx.x) - tile * p.chunks;
  for_each_pair(p, [&](uint32_t, uint32_t b, uint32_t h) {
    RowSumBlock<E, kAlong, kPlain>(p, b, h, tile * p.warps * 16,
                                   chunk * RowSumTiling<typename E::Element>::kWidth)
        .run();
  });
}

template <class E>
__global__ void __launch_bounds__(of_products<E>().warps * 32, of_products<E>().blocks)
    row_products_kernel(const __grid_constant__ RowProducts p) {
  const int tile = static_cast<int>(p.parts_in.quotient(blockIdx.x));
  const int part = static_cast<int>(blockIdx.x) - tile * p.parts;
  for_each_pair(p, [&](uint32_t pair, uint32_t b, uint32_t h) {
    RowProductsBlock<E>(p, pair, b, h, tile * p.warps * 16, part * p.n_per_block).run();
  });
}

// Blocks of equal height, as many rows as `most` warps have, and fewer where that would leave
// multiprocessors idle. Others: blocks to each of their number.
int warps_for(int rows, int64_t most, int64_t others) {
  const int64_t enough = 2 * device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t tiles = ceil_div(rows, 16);
  while (most > 1 && ceil_div(tiles, most) * others < enough) most = ceil_div(most, 2);
  return static_cast<int>(ceil_div(tiles, ceil_div(tiles, most)));
}

template <class Kernel, class Problem>
void launch_pairs(const char* name, Kernel kernel, int64_t blocks, size_t shared_bytes,
                  const Problem& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(blocks), std::min(p.pairs, kMaxGridY));
  launch_grid(name, kernel, grid, p.warps * kWarp, shared_bytes, stream, p);
}

template <class E>
void launch_row_sum(RowSum p, Along along, void* stream) {
  using T = typename E::Element;
  using Sizes = RowSumTiling<T>;
  if (p.size_m == 0 || p.columns == 0 || p.pairs == 0) return;
  const bool plain =
      p.hidden.mask == nullptr && (along == Along::kSums || p.weights_stride[3] == 1);
  p.chunks = static_cast<int>(ceil_div(p.columns, Sizes::kWidth));
  p.chunks_in = Divisor(p.chunks);
  p.heads_in = Divisor(p.num_heads);
  p.warps = warps_for(p.size_m, of_sums<E>(along, plain).warps, int64_t{p.pairs} * p.chunks);
  p.stages = p.size_n > Sizes::kRows ? 2 : 1;
  const size_t walk = p.stages * Sizes::stage(along, p.warps);
  const size_t out = p.warps * 16 * StagedRows<T, Sizes::kWidth>::kPitch;
  const auto kernel = [&](auto summed) {
    constexpr Along kAlong = decltype(summed)::value ? Along::kSummed : Along::kSums;
    return plain ? row_sum_kernel<E, kAlong, true> : row_sum_kernel<E, kAlong, false>;
  };
  launch_pairs("row_sum_kernel",
               along == Along::kSummed ? kernel(std::true_type{}) : kernel(std::false_type{}),
               ceil_div(p.size_m, p.warps * 16) * p.chunks,
               kFlagBytes + std::max(walk, out) * sizeof(T), p, stream);
}

template <class E>
void launch_row_products(RowProducts p, void* stream) {
  using T = typename E::Element;
  using Sizes = RowProductsTiling<T>;
  if (p.size_m == 0 || p.size_n == 0 || p.pairs == 0) return;
  // Without columns there are products all the same, zeros.
  p.panels = static_cast<int>(std::max(int64_t{1}, ceil_div(p.columns, Sizes::kWidth)));
  // Several panels of left take two stages, which of 7 warps are more than a block may have.
  const int most = sizeof(T) > 2 && p.panels > 1 ? 4 : of_products<E>().warps;
  p.warps = warps_for(p.size_m, most, p.pairs);
  const int64_t steps = ceil_div(p.size_n, Sizes::kRows);
  const int64_t blocks = ceil_div(p.size_m, p.warps * 16) * p.pairs;
  const int64_t enough = 2 * device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t steps_per_block = ceil_div(steps, std::min(steps, ceil_div(enough, blocks)));
  p.n_per_block = static_cast<int>(steps_per_block * Sizes::kRows);
  p.parts = static_cast<int>(ceil_div(steps, steps_per_block));
  p.parts_in = Divisor(p.parts);
  p.heads_in = Divisor(p.num_heads);
  p.out_aligned = reinterpret_cast<uintptr_t>(p.out) % 16 == 0 && p.size_n * sizeof(T) % 16 == 0;
  p.stages = steps_per_block * p.panels > 1 ? 2 : 1;
  const size_t elements =
      Sizes::left(p.warps, p.stages, p.panels) + Sizes::right(p.stages) + Sizes::products(p.warps);
  launch_pairs("row_products_kernel", row_products_kernel<E>,
               ceil_div(p.size_m, p.warps * 16) * p.parts, elements * sizeof(T), p, stream);
}

// Calls fn with a value of the engine's type.
template <class Fn>
void with_engine(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(FmaEngine<float>{});
    case DType::kBFloat16:
      return fn(MmaEngine<BFloat16>{});
    case DType::kFloat16:
      return fn(MmaEngine<Float16>{});
    case DType::kFloat64:
      return fn(FmaEngine<double>{});
  }
}

// Kernels count within a (batch, head) in 32 bits, to the end of the last tile.
int as_int(int64_t size) {
  if (size > std::numeric_limits<int>::max() - 1024)
    throw std::runtime_error("weighted_sum: a dimension of " + std::to_string(size) +
                             " elements is too large");
  return static_cast<int>(size);
}

template <class Data>
MatrixRows<Data> matrix_rows(Data* data, const int64_t (&stride)[4], DType dtype) {
  MatrixRows<Data> rows{data, {stride[0], stride[1], stride[2]}, true};
  const int64_t size = size_of(dtype);
  rows.aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (const int64_t s : rows.stride) rows.aligned &= s * size % 16 == 0;
  return rows;
}

// With m and n the queries and the keys, or the keys and the queries.
void copy_strides(const int64_t (&from)[4], bool swapped, int64_t size_m, int64_t size_n,
                  int64_t (&to)[4]) {
  to[0] = from[0];
  to[1] = from[1];
  to[2] = from[swapped ? 3 : 2];
  to[3] = from[swapped ? 2 : 3];
  // Strides of one element say nothing.
  if (size_m == 1) to[2] = 0;
  if (size_n == 1) to[3] = 0;
}

HiddenPairs hidden_pairs(const WeightedSumProblem& p, bool swapped, int64_t size_m,
                         int64_t size_n) {
  HiddenPairs hidden{};
  hidden.mask = p.mask;
  if (p.mask) copy_strides(p.mask_stride, swapped, size_m, size_n, hidden.mask_stride);
  hidden.lengths = p.lengths;
  hidden.lengths_are_int64 = p.lengths_are_int64;
  hidden.lengths_count_m = swapped;
  return hidden;
}

// Over keys, or over queries.
void row_sum(const WeightedSumProblem& p, bool over_queries, const MatrixRows<const void>& rows,
             const MatrixRows<void>& out, void* stream) {
  RowSum sum{};
  sum.size_m = as_int(over_queries ? p.seqlen_k : p.seqlen_q);
  sum.size_n = as_int(over_queries ? p.seqlen_q : p.seqlen_k);
  sum.columns = as_int(p.head_dim);
  sum.pairs = as_int(p.batch * p.num_heads);
  sum.num_heads = as_int(p.num_heads);
  sum.weights = p.weights;
  copy_strides(p.weights_stride, over_queries, sum.size_m, sum.size_n, sum.weights_stride);
  sum.rows = rows;
  sum.out = out;
  sum.hidden = hidden_pairs(p, over_queries, sum.size_m, sum.size_n);

  int64_t (&stride)[4] = sum.weights_stride;
  if (sum.size_m == 1) stride[2] = 1;
  const Along along = stride[3] != 1 && stride[2] == 1 ? Along::kSums : Along::kSummed;
  if (sum.size_n == 1 && along == Along::kSummed) stride[3] = 1;
  with_engine(p.dtype, [&](auto engine) { launch_row_sum<decltype(engine)>(sum, along, stream); });
}

}  // namespace

void weighted_sum_fwd(const WeightedSumProblem& p, void* stream) {
  row_sum(p, false, matrix_rows(p.values, p.values_stride, p.dtype),
          matrix_rows(p.out, p.out_stride, p.dtype), stream);
}

void weighted_sum_bwd(const WeightedSumProblem& p, const WeightedSumBackward& g, void* stream) {
  const MatrixRows<const void> dout = matrix_rows(g.dout, g.dout_stride, p.dtype);
  if (g.dvalues) {
    const int64_t row = p.head_dim, head = p.seqlen_k * row;
    row_sum(p, true, dout, matrix_rows(g.dvalues, {p.num_heads * head, head, row, 1}, p.dtype),
            stream);
  }
  if (g.dweights) {
    RowProducts products{};
    products.left = dout;
    products.right = matrix_rows(p.values, p.values_stride, p.dtype);
    products.out = g.dweights;
    products.size_m = as_int(p.seqlen_q);
    products.size_n = as_int(p.seqlen_k);
    products.columns = as_int(p.head_dim);
    products.pairs = as_int(p.batch * p.num_heads);
    products.num_heads = as_int(p.num_heads);
    products.hidden = hidden_pairs(p, false, p.seqlen_q, p.seqlen_k);
    with_engine(p.dtype,
                [&](auto engine) { launch_row_products<decltype(engine)>(products, stream); });
  }
}

}  // namespace crossmodal::cuda
