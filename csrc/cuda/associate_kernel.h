// What attended to what: weights rebuilt from the statistics of rows that forward left, reduced
// before they are written. A block owns what it writes:
//
//   all weights      a tile of queries by keys of one head
//   mean over heads  such a tile, for which it walks the heads
//   total by key     a block of keys of one head, for which it walks the queries
//   entropy, top-k   a block of queries of one head, for which it walks the keys
#pragma once

#include "cuda/attention_bwd.h"
#include "cuda/attention_launch.h"

namespace crossmodal::cuda {

// The largest block of a walk, and how many of them there are.
struct AssociateGrid {
  int64_t heads, tiles_m, tiles_n;  // 1 where a block walks them itself
  int64_t tiles(int64_t batch) const { return batch * heads * tiles_m * tiles_n; }
};

template <class E, int kWidth>
class AssociateBlock {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockN = backward_block(sizeof(T));
  static constexpr int kTilesN = kBlockN / 8;
  using Block = ScoreBlock<Orientation::kQueriesByKeys>;
  using Fragment = Acc[kTilesN][4];

 public:
  __device__ AssociateBlock(const Problem& p, const AssociateProblem& request, const Tiling& tiling,
                            const Alignment& aligned, int b)
      : p_(p),
        a_(request),
        t_(tiling),
        aligned_(aligned),
        b_(b),
        band_(p, b),
        queries_(query_rows(p, b)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {}

  // Weights of heads [h, h + heads), summed, of a tile.
  __device__ void write_tile(int h, int heads, int m_begin, const KeyBlock& keys) {
    Fragment sum, weights, scores;
    clear(sum);
    for (int head = h; head < h + heads; ++head) {
      weigh(head, m_begin, keys, weights, scores);
#pragma unroll
      for (int t = 0; t < kTilesN; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[t][e] += weights[t][e];
    }
    const bool mean = a_.output == AssociateOutput::kHeadMean;
    const Acc factor = mean ? static_cast<Acc>(p_.inverse_num_heads) : Acc(1);
    const int64_t first_row =
        mean ? b_ * p_.seqlen_q : (int64_t{b_} * p_.num_heads + h) * p_.seqlen_q;
    const int offset = key_offset(p_, keys.source);
    block_of(h, m_begin, keys).for_each(sum, [&](Acc& x, int i, int j) {
      if (i < queries_.count && keys.holds(j))
        output()[(first_row + i) * p_.total_keys + offset + j] = factor * x;
    });
  }

  // What a block of keys of one head received from all queries.
  __device__ void write_key_totals(int h, const KeyBlock& keys) {
    double sums[kTilesN][2] = {};
    for (int m_begin = 0; m_begin < queries_.count; m_begin += t_.block_m) {
      Fragment weights, scores;
      weigh(h, m_begin, keys, weights, scores);
#pragma unroll
      for (int t = 0; t < kTilesN; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[t][e] += weights[t][e] + weights[t][e + 2];
    }
    __syncthreads();  // the tiles have been read
    double* of_warps = reinterpret_cast<double*>(shared_memory());
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int t = 0; t < kTilesN; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        double sum = sums[t][e];
        for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane < 4) of_warps[warp * kBlockN + t * 8 + lane * 2 + e] = sum;
      }
    __syncthreads();
    const int64_t pair = int64_t{b_} * p_.num_heads + h;
    for (int x = threadIdx.x; x < kBlockN; x += blockDim.x) {
      if (!keys.holds(keys.begin + x)) continue;
      double sum = 0;
      for (int w = 0; w < t_.warps; ++w) sum += of_warps[w * kBlockN + x];
      output()[pair * p_.total_keys + key_offset(p_, keys.source) + keys.begin + x] =
          static_cast<Acc>(sum);
    }
  }

  // -sum w log w, with log w = (s - top) - log(sum), two terms of one sign.
  __device__ void write_entropies(int h, int m_begin) {
    LongSum<Acc> entropy[2];
    Acc log_sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Acc sum = row_sum(h, m_begin + row_of(r));
      log_sum[r] = sum == 0 ? Acc(0) : natural_log(sum);
    }
    KeyWalk keys = walk();
    for (KeyBlock block = keys.next(); block.count > 0; block = keys.next()) {
      Fragment weights, scores;
      weigh(h, m_begin, block, weights, scores);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Acc sum = 0;
#pragma unroll
        for (int t = 0; t < kTilesN; ++t)
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e)
            if (weights[t][e] != 0)
              sum += weights[t][e] * (log_sum[r] + (rows_[r].top - scores[t][e]));
        entropy[r].rescale_and_add(1, sum);
      }
    }
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Acc sum = sum_of_quad(entropy[r].value);
      const int i = m_begin + row_of(r);
      if (lane % 4 == 0 && i < p_.seqlen_q) output()[row_at_output(h, i)] = sum;
    }
  }

  // Insertion into a sorted list, by one lane a row: k is small, and a weight that does not reach
  // the list costs one comparison. Equal weights keep the order of the keys.
  __device__ void write_topk(int h, int m_begin) {
    const int lane = threadIdx.x % 32, row = warp_row_ + lane;
    const bool owns = lane < kWarpRows && m_begin + row < p_.seqlen_q;
    const int64_t first = owns ? row_at_output(h, m_begin + row) * a_.topk : 0;
    Acc* top = output() + first;
    int64_t* index = a_.indices + first;
    int64_t found = 0;
    KeyWalk keys = walk();
    for (KeyBlock block = keys.next(); block.count > 0; block = keys.next()) {
      Fragment weights, scores;
      weigh(h, m_begin, block, weights, scores);
      for_each_element(weights, [&](Acc& x, int r, int column) {
        weight_rows()[(warp_row_ + r) * kBlockN + column] = x;
      });
      __syncwarp();
      const int offset = key_offset(p_, block.source) + block.begin;
      for (int x = 0; owns && x < kBlockN; ++x) {
        const Acc weight = weight_rows()[row * kBlockN + x];
        if (weight == 0 || a_.topk == 0 || (found == a_.topk && !(weight > top[found - 1])))
          continue;
        int64_t at = found < a_.topk ? found++ : found - 1;
        for (; at > 0 && weight > top[at - 1]; --at) {
          top[at] = top[at - 1];
          index[at] = index[at - 1];
        }
        top[at] = weight;
        index[at] = offset + x;
      }
    }
    for (int64_t x = found; owns && x < a_.topk; ++x) {
      top[x] = 0;
      index[x] = -1;
    }
  }

 private:
  // -- shared memory: queries, keys, rows of weights, flags of keys
  // ---------------------------------

  __device__ Tile<T, kWidth> query_tile() const { return {reinterpret_cast<T*>(shared_memory())}; }
  __device__ Tile<T, kWidth> key_tile() const {
    return {query_tile().data + t_.panels * t_.block_m * kWidth};
  }
  __device__ Acc* weight_rows() const {
    return reinterpret_cast<Acc*>(key_tile().data + t_.panels * kBlockN * kWidth);
  }
  __device__ bool* seen_keys() const {
    return reinterpret_cast<bool*>(weight_rows() + t_.block_m * kBlockN);
  }

  __device__ Acc* output() const { return static_cast<Acc*>(a_.weights); }
  __device__ int64_t row_at_output(int h, int i) const {
    return (int64_t{b_} * p_.num_heads + h) * p_.seqlen_q + i;
  }
  __device__ int row_of(int r) const {
    return warp_row_ + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
  }
  __device__ Acc row_sum(int h, int i) const {
    if (i >= queries_.count) return 0;
    return static_cast<const Acc*>(p_.row_sum)[row_index(p_, b_, h, queries_, i)];
  }
  __device__ KeyWalk walk() const {
    return KeyWalk(p_, b_, band_, 0, static_cast<int>(p_.seqlen_q) - 1, kBlockN);
  }
  __device__ Block block_of(int h, int m_begin, const KeyBlock& keys) const {
    return {b_, h, m_begin + warp_row_, queries_.count, keys, 0};
  }

  // Weights and scores of one head's queries and a block of keys.
  __device__ void weigh(int h, int m_begin, const KeyBlock& keys, Fragment& weights,
                        Fragment& scores) {
    load(h, m_begin, keys);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    clear(scores);
    multiply_rows<E, kWidth>(scores, query_tile(), warp_row_, t_.block_m, key_tile(), kBlockN,
                             t_.panels);
    products_to_scores<false>(p_, band_, block_of(h, m_begin, keys), scores, [](int, int, Acc) {});
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = m_begin + row_of(r);
      const Acc sum = row_sum(h, i);
      rows_[r] = {0, 0, 0, 0};
      if (sum == 0) continue;
      rows_[r].top = static_cast<const Acc*>(p_.row_top)[row_index(p_, b_, h, queries_, i)];
      rows_[r].inverse = reciprocal(sum);
    }
#pragma unroll
    for (int t = 0; t < kTilesN; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowState<Acc>& row = rows_[e / 2];
        const Acc exponential = exp2_of((scores[t][e] - row.top) * static_cast<Acc>(kLog2E));
        const bool none = exponential == 0 || row.inverse == 0;
        weights[t][e] = none ? Acc(0) : exponential * row.inverse;
      }
  }

  __device__ void load(int h, int m_begin, const KeyBlock& keys) {
    const KeySource& source = p_.source[keys.source];
    const int last = min(m_begin + t_.block_m, queries_.count) - 1;
    bool* seen = seen_keys();
    note_seen_keys(p_, keys, b_, h, m_begin, last, kBlockN, seen);
    __syncthreads();  // flags are there, and what stood in the tiles has been read
    load_tile(query_tile(), t_.panels, t_.block_m,
              {row_at<const T>(p_.q, p_.q_stride, b_, h, m_begin), p_.q_stride[2],
               static_cast<int>(p_.head_dim), aligned_.query()},
              0, [&](int row) { return m_begin + row < queries_.count; });
    load_tile(
        key_tile(), t_.panels, kBlockN,
        {row_at<const T>(source.k, source.k_stride, b_, key_head(p_, keys.source, h), keys.begin),
         source.k_stride[2], static_cast<int>(p_.head_dim), aligned_.key(keys.source)},
        0, [&](int key) { return seen[key]; });
  }

  const Problem& p_;
  const AssociateProblem& a_;
  const Tiling& t_;
  const Alignment& aligned_;
  int b_;
  Band band_;
  Rows queries_;
  int warp_row_;
  RowState<Acc> rows_[2];
};

// Block `index` of keys, block_n at a time, sources one after the other.
__device__ inline KeyBlock key_block_at(const Problem& p, int b, int64_t index, int block_n) {
  for (int s = 0; s < p.num_sources; ++s) {
    const int64_t blocks = ceil_div(p.source[s].seqlen_k, block_n);
    if (index >= blocks) {
      index -= blocks;
      continue;
    }
    const int begin = static_cast<int>(index) * block_n;
    return {s, begin, max(0, min(block_n, key_rows_of(p.source[s], b).count - begin))};
  }
  return {0, 0, 0};
}

template <class E, int kWidth>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    associate_kernel(const __grid_constant__ Problem p,
                     const __grid_constant__ AssociateProblem request,
                     const __grid_constant__ Tiling tiling,
                     const __grid_constant__ Alignment aligned, AssociateGrid grid) {
  constexpr int kBlockN = backward_block(sizeof(typename E::Element));
  const int64_t tiles = p.batch * grid.heads * grid.tiles_m * grid.tiles_n;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t n = tile % grid.tiles_n, m = tile / grid.tiles_n % grid.tiles_m;
    const int64_t pair = tile / grid.tiles_n / grid.tiles_m;
    const int h = static_cast<int>(pair % grid.heads), b = static_cast<int>(pair / grid.heads);
    const int m_begin = static_cast<int>(m) * tiling.block_m;
    AssociateBlock<E, kWidth> block(p, request, tiling, aligned, b);
    switch (request.output) {
      case AssociateOutput::kWeights:
        block.write_tile(h, 1, m_begin, key_block_at(p, b, n, kBlockN));
        break;
      case AssociateOutput::kHeadMean:
        block.write_tile(0, static_cast<int>(p.num_heads), m_begin, key_block_at(p, b, n, kBlockN));
        break;
      case AssociateOutput::kKeyTotal:
        block.write_key_totals(h, key_block_at(p, b, n, kBlockN));
        break;
      case AssociateOutput::kEntropy:
        block.write_entropies(h, m_begin);
        break;
      case AssociateOutput::kTopK:
        block.write_topk(h, m_begin);
        break;
    }
  }
}

template <class E, int kWidth>
void launch_associate(const AttentionProblem& p, const AssociateProblem& request,
                      const Tiling& tiling, void* stream) {
  int64_t tiles_n = 0;
  for (int s = 0; s < p.num_sources; ++s)
    tiles_n += ceil_div(p.sources[s].seqlen_k, backward_block(size_of(p.dtype)));
  AssociateGrid grid{p.num_heads, ceil_div(p.seqlen_q, tiling.block_m), tiles_n};
  switch (request.output) {
    case AssociateOutput::kHeadMean:
      grid.heads = 1;
      break;
    case AssociateOutput::kKeyTotal:
      grid.tiles_m = 1;
      break;
    case AssociateOutput::kEntropy:
    case AssociateOutput::kTopK:
      grid.tiles_n = 1;
      break;
    default:
      break;
  }
  launch("associate_kernel", associate_kernel<E, kWidth>, grid.tiles(p.batch), tiling.warps * kWarp,
         tiling.shared_bytes, stream, as_parameter(p), request, tiling, Alignment(p), grid);
}

}  // namespace crossmodal::cuda
