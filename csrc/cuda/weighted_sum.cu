// Weighted sum, forward: any strides, any head_dim, lengths, mask.
//
// One block computes kBlockM queries x kBlockD columns; a thread owns one column, so that values
// are read once, in order, for all queries of the block. The block's weights pass through shared
// memory, kBlockN keys at a time.
#include "cuda/weighted_sum.h"

#include "cuda/launch.h"
#include "cuda/number.h"

namespace crossmodal::cuda {
namespace {

constexpr int kBlockM = 8;
constexpr int kBlockN = 32;
constexpr int kBlockD = 128;

__device__ int64_t visible_keys(const WeightedSumProblem& p, int64_t batch_index) {
  if (p.lengths == nullptr) return p.seqlen_k;
  const int64_t length = p.lengths_are_int64 ? static_cast<const int64_t*>(p.lengths)[batch_index]
                                             : static_cast<const int32_t*>(p.lengths)[batch_index];
  return min(max(length, int64_t{0}), p.seqlen_k);
}

// Accumulator: float for up to 32 bits, double for double.
template <typename T, typename Accumulator>
__global__ void __launch_bounds__(kBlockD) weighted_sum_kernel(const WeightedSumProblem p) {
  struct Shared {
    Accumulator weights[kBlockN][kBlockM];
    bool visible[kBlockN][kBlockM];
  };
  auto& [weights_tile, visible_tile] = *reinterpret_cast<Shared*>(shared_memory());

  const int64_t tiles_m = ceil_div(p.seqlen_q, kBlockM);
  const int64_t tiles_d = ceil_div(p.head_dim, kBlockD);
  const int64_t tiles = p.batch * p.num_heads * tiles_m * tiles_d;

  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t d = tile % tiles_d * kBlockD + threadIdx.x;
    const int64_t first_query = tile / tiles_d % tiles_m * kBlockM;
    const int64_t h = tile / (tiles_d * tiles_m) % p.num_heads;
    const int64_t b = tile / (tiles_d * tiles_m * p.num_heads);

    const T* weights =
        static_cast<const T*>(p.weights) + b * p.weights_stride[0] + h * p.weights_stride[1];
    const T* values =
        static_cast<const T*>(p.values) + b * p.values_stride[0] + h * p.values_stride[1];
    const uint8_t* mask = p.mask + b * p.mask_stride[0] + h * p.mask_stride[1];
    const int64_t seqlen_k = visible_keys(p, b);

    Accumulator sums[kBlockM] = {};
    for (int64_t first_key = 0; first_key < seqlen_k; first_key += kBlockN) {
      __syncthreads();  // the tile of the previous round has been read
      for (int slot = threadIdx.x; slot < kBlockM * kBlockN; slot += kBlockD) {
        const int row = slot / kBlockN, column = slot % kBlockN;
        const int64_t i = first_query + row, j = first_key + column;
        bool visible = i < p.seqlen_q && j < seqlen_k;
        if (visible && p.mask != nullptr) {
          visible = mask[i * p.mask_stride[2] + j * p.mask_stride[3]] != 0;
        }
        visible_tile[column][row] = visible;
        weights_tile[column][row] =
            visible
                ? number<Accumulator>(weights[i * p.weights_stride[2] + j * p.weights_stride[3]])
                : Accumulator{0};
      }
      __syncthreads();

      if (d < p.head_dim) {
        const int keys = static_cast<int>(min(int64_t{kBlockN}, seqlen_k - first_key));
        for (int column = 0; column < keys; ++column) {
          const Accumulator value = number<Accumulator>(
              values[(first_key + column) * p.values_stride[2] + d * p.values_stride[3]]);
#pragma unroll
          for (int row = 0; row < kBlockM; ++row) {
            // A hidden key's value may be NaN, which a weight of zero would not silence.
            if (visible_tile[column][row]) sums[row] += weights_tile[column][row] * value;
          }
        }
      }
    }

    if (d < p.head_dim) {
      T* out = static_cast<T*>(p.out) + b * p.out_stride[0] + h * p.out_stride[1];
#pragma unroll
      for (int row = 0; row < kBlockM; ++row) {
        const int64_t i = first_query + row;
        if (i < p.seqlen_q) {
          out[i * p.out_stride[2] + d * p.out_stride[3]] = rounded<T>(sums[row]);
        }
      }
    }
  }
}

template <typename T, typename Accumulator>
void launch_for(const WeightedSumProblem& p, void* stream) {
  const int64_t tiles =
      p.batch * p.num_heads * ceil_div(p.seqlen_q, kBlockM) * ceil_div(p.head_dim, kBlockD);
  launch("weighted_sum_kernel", weighted_sum_kernel<T, Accumulator>, tiles, kBlockD,
         kBlockN * kBlockM * (sizeof(Accumulator) + sizeof(bool)), stream, p);
}

}  // namespace

void launch_weighted_sum(const WeightedSumProblem& problem, void* stream) {
  switch (problem.dtype) {
    case DType::kFloat32:
      return launch_for<float, float>(problem, stream);
    case DType::kBFloat16:
      return launch_for<BFloat16, float>(problem, stream);
    case DType::kFloat16:
      return launch_for<Float16, float>(problem, stream);
    case DType::kFloat64:
      return launch_for<double, double>(problem, stream);
  }
}

}  // namespace crossmodal::cuda
