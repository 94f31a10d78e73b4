// Forward, for sm_80 and later. A block owns 16 queries to a warp and walks the keys of all
// sources:
//
//   for each block of keys, the next one under way:
//     S = Q K^T;  P = exp(S - m), m the running maximum;  O = O * correction + P V
//   out = O / l
//
// (FlashAttention-2, Dao, 2023.) P never leaves registers: the accumulators of one product are the
// operand of the next.
#pragma once

#include <cuda_runtime.h>

#include "cuda/alignment.h"
#include "cuda/attention_launch.h"
#include "cuda/block_pipeline.h"
#include "cuda/dropout.h"
#include "cuda/engine.h"
#include "cuda/key_loads.h"
#include "cuda/launch_tiles.h"
#include "cuda/order_tiles.h"
#include "cuda/query_tiles.h"
#include "cuda/row_shares.h"
#include "cuda/row_total.h"
#include "cuda/scores.h"
#include "cuda/softmax.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

template <class E, int kWidth, bool kPlain>
class ForwardBlock {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockN = forward_block_n(sizeof(T), kWidth, kPlain);
  static constexpr int kTilesN = kBlockN / 8, kTilesV = kWidth / 8;
  static constexpr bool kOnePanel = kPlain && sizeof(T) == 2;  // see rows_may_be_plain
  // The last block of a source is often short: of 77 keys it has 13. Products of keys that are not
  // there are left out.
  static constexpr bool kSkipsMissing = kOnePanel;

 public:
  __device__ ForwardBlock(const Problem& p, const Tiling& tiling, Alignment aligned,
                          const RowShares& shares, int share, int b, int h, int m_begin, int chunk)
      : p_(p),
        t_(tiling),
        aligned_(aligned),
        shares_(shares),
        share_(share),
        b_(b),
        h_(h),
        m_begin_(m_begin),
        first_column_(kOnePanel ? 0 : chunk * kWidth),
        writes_rows_(kOnePanel || chunk == 0),
        band_(p, b),
        queries_(query_rows(p, b)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {}

  __device__ void run() {
    const int m_end = min(m_begin_ + t_.block_m, queries_.count);
    if (p_.mass) start_mass();
    if (m_end > m_begin_) walk(m_end);
    if (shares_.count > 1) {
      leave_share();
    } else {
      finish();
    }
  }

 private:
  __device__ void walk(int m_end) {
    const bool alive = m_begin_ + warp_row_ < queries_.count;
    const Dropout<Acc> dropout(p_, b_, h_);
    const Acc factor = exponent_factor<Acc, kPlain>(p_);
    KeyWalk keys(p_, b_, band_, m_begin_, m_end - 1, kBlockN, {share_, shares_.count});
    KeyLoads<T, kPlain> loads(p_, aligned_, b_, h_, m_begin_, m_end - 1);
    bool has_queries = false;  // they come with the first keys
    walk_blocks(
        keys, t_.stages,
        [&](const KeyBlock& block, int stage) {
          if (!has_queries) load_queries();
          has_queries = true;
          loads.template load<kBlockN>(block, seen_keys(stage), key_tile(stage), panels(),
                                       value_tile(stage), kOnePanel || p_.head_dim_v > 0,
                                       first_column_);
        },
        [&](const KeyBlock& block, int stage) {
          if (alive) step(block, stage, dropout, factor);
        });
    if (!kPlain) kept_ = dropout.kept();
    if (p_.mass && alive) end_source();
  }

  __device__ __forceinline__ void step(const KeyBlock& block, int stage,
                                       const Dropout<Acc>& dropout, Acc factor) {
    if (p_.mass && block.source != source_) {
      end_source();
      source_ = block.source;
    }
    Acc s[kTilesN][4];
    clear(s);
    if (kSkipsMissing && 2 * block.count <= kBlockN) {
      multiply_some_rows<E, kWidth>(s, query_tile(), warp_row_, t_.block_m, key_tile(stage),
                                    kBlockN, panels(), block.count);
    } else {
      multiply_rows<E, kWidth>(s, query_tile(), warp_row_, t_.block_m, key_tile(stage), kBlockN,
                               panels());
    }
    const ScoreBlock<Orientation::kQueriesByKeys> scores = {
        b_, h_, m_begin_ + warp_row_, queries_.count, block, 0};
    products_to_scores<kPlain>(p_, band_, scores, s, [](int, int, Acc) {});
    Acc sum[2], correction[2];
    softmax_.add(s, factor, sum, correction);
    if (p_.mass)
#pragma unroll
      for (int r = 0; r < 2; ++r) source_sum_[r].rescale_and_add(correction[r], sum[r]);
    if (!kPlain && dropout.active()) drop(s, dropout.template dropped<kTilesN>(p_, scores));
    // Maxima settle within a few blocks.
    if (__any_sync(0xffffffffu, correction[0] != 1 || correction[1] != 1))
#pragma unroll
      for (int n = 0; n < kTilesV; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[n][e] *= correction[e / 2];
    if (kOnePanel || p_.head_dim_v > 0)
      multiply_weights<E>(o_, s, value_tile(stage), false, kSkipsMissing ? block.count : kBlockN);
  }

  // -- shared memory: queries, stages of keys, stages of values, mass, flags of keys --------------

  __device__ T* rows_from(int row) const {
    return reinterpret_cast<T*>(shared_memory()) + row * kWidth;
  }
  __device__ Tile<T, kWidth> query_tile() const { return {rows_from(0)}; }
  // Over the queries: each warp over rows that no other warp reads.
  __device__ Tile<T, kWidth> out_tile() const { return query_tile(); }
  __device__ Tile<T, kWidth> key_tile(int stage) const {
    return {rows_from(rows_of_queries() + stage * panels() * kBlockN)};
  }
  __device__ Tile<T, kWidth> value_tile(int stage) const {
    return {rows_from(rows_of_queries() + (t_.stages * panels() + stage) * kBlockN)};
  }
  __device__ SourceMass<Acc>* masses() const {
    return reinterpret_cast<SourceMass<Acc>*>(value_tile(t_.stages).data);
  }
  // Of the keys of each stage.
  __device__ bool* seen_keys(int stage) const {
    const int mass = p_.mass ? t_.block_m * p_.num_sources : 0;
    return reinterpret_cast<bool*>(masses() + mass) + stage * kBlockN;
  }
  // Without features the output still needs a place.
  __device__ int rows_of_queries() const { return max(1, panels()) * t_.block_m; }
  __device__ int panels() const { return kOnePanel ? 1 : t_.panels; }

  __device__ void load_queries() {
    const T* base = row_at<const T>(p_.q, p_.q_stride, b_, h_, queries_.first + m_begin_);
    const GlobalRows<T> rows = {base, p_.q_stride[2], static_cast<int>(p_.head_dim),
                                aligned_.query()};
    load_tile(query_tile(), panels(), t_.block_m, rows, 0,
              [&](int row) { return m_begin_ + row < queries_.count; });
  }

  // -- mass: each source's share, with the maximum that it is relative to ------------------------

  __device__ SourceMass<Acc>& mass_of(int row, int source) {
    return masses()[row * p_.num_sources + source];
  }

  __device__ void start_mass() {
    const int lane = threadIdx.x % 32;
    for (int x = lane; x < kWarpRows * p_.num_sources; x += 32)
      masses()[warp_row_ * p_.num_sources + x] = {0, minus_infinity<Acc>()};
    __syncwarp();
  }

  __device__ void end_source() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Acc sum = sum_of_quad(source_sum_[r].value);
      if (lane % 4 == 0 && source_ >= 0)
        mass_of(warp_row_ + lane / 4 + 8 * r, source_) = {sum, softmax_.top[r]};
      source_sum_[r] = {};
    }
  }

  // -- results -----------------------------------------------------------------------------------

  __device__ void finish() {
    const int lane = threadIdx.x % 32;
    Acc inverse[2];
    bool nothing[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row_ + lane / 4 + 8 * r, i = m_begin_ + row;
      const Acc sum = sum_of_quad(softmax_.sum[r].value);
      const bool exists = i < queries_.count;
      const RowTotal<Acc> total =
          exists ? row_total<kPlain>(p_, b_, h_, softmax_.top[r], sum) : RowTotal<Acc>::none();
      nothing[r] = !exists || sum == 0;  // false for NaN, which has to be seen
      inverse[r] = total.inverse;
      if (writes_rows_ && lane % 4 == 0 && i < rows_to_write())
        write_row(row, total, softmax_.top[r], nothing[r]);
    }
    if (!kOnePanel && p_.head_dim_v == 0) return;
    // By choice, not by a product with 0: a value row may have been NaN.
    if (__any_sync(0xffffffffu, nothing[0] || nothing[1]))
#pragma unroll
      for (int n = 0; n < kTilesV; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (nothing[e / 2]) o_[n][e] = 0;
#pragma unroll
    for (int n = 0; n < kTilesV; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Acc factor = kPlain ? inverse[r] : inverse[r] * kept_;
        E::store_pair(out_tile().element(warp_row_ + lane / 4 + 8 * r, n * 8 + lane % 4 * 2),
                      o_[n][2 * r] * factor, o_[n][2 * r + 1] * factor);
      }
    __syncwarp();
    const int rows = min(kWarpRows, rows_to_write() - m_begin_ - warp_row_);
    store_tile(out_tile(), warp_row_, rows,
               row_at<T>(p_.out, p_.out_stride, b_, h_, queries_.first + m_begin_ + warp_row_),
               p_.out_stride[2], first_column_, static_cast<int>(p_.head_dim_v), aligned_.out(),
               lane);
  }

  // Padded queries beyond the sample's length are written too: they see nothing.
  __device__ int rows_to_write() const {
    return p_.cu_seqlens_q ? queries_.count : static_cast<int>(p_.seqlen_q);
  }

  __device__ void write_row(int row, const RowTotal<Acc>& total, Acc top, bool nothing) {
    const int64_t at = row_index(p_, b_, h_, queries_, m_begin_ + row);
    write_statistics(p_, at, total);
    if (!p_.mass) return;
    for (int s = 0; s < p_.num_sources; ++s) {
      const SourceMass<Acc> mass = mass_of(row, s);
      const Acc shift = exp2_of((mass.top - top) * exponent_factor<Acc, kPlain>(p_));
      write_mass(p_, at, s, total, nothing ? Acc(0) : mass.sum * shift);
    }
  }

  // What these keys alone come to, for merge_rows_kernel.
  __device__ void leave_share() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row_ + lane / 4 + 8 * r, i = m_begin_ + row;
      const Acc sum = sum_of_quad(softmax_.sum[r].value);
      if (i >= rows_to_write()) continue;
      const RowShare<Acc> share = shares_.at<Acc>(p_, share_, b_, h_, i);
      if (writes_rows_ && lane % 4 == 0) {
        share.top() = softmax_.top[r];
        share.sum() = sum;
        if (p_.mass)
          for (int s = 0; s < p_.num_sources; ++s) share.set_mass(s, mass_of(row, s));
      }
#pragma unroll
      for (int n = 0; n < kTilesV; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = first_column_ + n * 8 + lane % 4 * 2 + e;
          if (column < p_.head_dim_v) share.value(column) = o_[n][2 * r + e];
        }
    }
  }

  const Problem& p_;
  const Tiling& t_;
  Alignment aligned_;
  const RowShares& shares_;
  int share_;
  int b_, h_;
  int m_begin_, first_column_;
  bool writes_rows_;
  Band band_;
  Rows queries_;
  int warp_row_;

  OnlineSoftmax<Acc> softmax_;
  Acc o_[kTilesV][4] = {};
  LongSum<Acc> source_sum_[2];
  Acc kept_ = 1;
  int source_ = -1;
};

// Blocks to a multiprocessor that registers have to leave room for.
template <class E, int kWidth, bool kPlain>
constexpr int forward_blocks() {
  // A fourth block of width 64, or a third of width 96, would spill.
  if (sizeof(typename E::Element) > 2 || kWidth > 64 || !kPlain) return 2;
  return kWidth > 32 ? 3 : 4;
}

template <class E, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMostWarps * 32, forward_blocks<E, kWidth, kPlain>())
    attention_fwd_kernel(const __grid_constant__ Problem p, const __grid_constant__ Tiling tiling,
                         Alignment aligned, const __grid_constant__ RowShares shares,
                         const __grid_constant__ QueryGrid grid,
                         const __grid_constant__ TileQueue queue) {
  for (BlockTiles tiles(queue, tiling); tiles.next(grid.tiles * shares.count);) {
    const int share = shares.count == 1 ? 0 : static_cast<int>(tiles.tile() / grid.tiles);
    const QueryTile at = query_tile_at(p, tiling, grid, queue, tiles.tile() - share * grid.tiles);
    ForwardBlock<E, kWidth, kPlain>(p, tiling, aligned, shares, share, at.b, at.h, at.m_begin,
                                    at.chunk)
        .run();
    if (at.m_begin == 0 && at.chunk == 0 && share == 0)
      write_rows_beside<typename E::Element, typename E::Acc>(p, at.b, at.h);
  }
}

template <class E, int kWidth>
void launch_attention_fwd(const AttentionProblem& p, bool plain, const Tiling& tiling,
                          const RowShares& shares, const TileQueue& queue, void* stream) {
  const Problem problem = as_parameter(p);
  if (queue.memory) order_query_tiles(problem, tiling, queue, stream);
  launch_tiles(
      "attention_fwd_kernel",
      plain ? attention_fwd_kernel<E, kWidth, true> : attention_fwd_kernel<E, kWidth, false>,
      all_query_tiles(p, tiling) * shares.count, tiling, queue, stream, problem, tiling,
      Alignment(p), shares, QueryGrid(p, tiling), queue);
}

}  // namespace crossmodal::cuda
