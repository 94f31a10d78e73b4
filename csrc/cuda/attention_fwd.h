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
#include "cuda/dropout.h"
#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/row_total.h"
#include "cuda/scores.h"
#include "cuda/softmax.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

template <class Acc>
struct SourceMass {
  Acc sum, top;  // of exponentials, relative to the maximum at the time
};

template <class E, int kWidth, bool kPlain>
class ForwardBlock {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockN = forward_block_n(sizeof(T));
  static constexpr int kTilesN = kBlockN / 8, kTilesV = kWidth / 8;

 public:
  __device__ ForwardBlock(const Problem& p, const Tiling& tiling, Alignment aligned, int b, int h,
                          int m_begin, int chunk)
      : p_(p),
        t_(tiling),
        aligned_(aligned),
        b_(b),
        h_(h),
        m_begin_(m_begin),
        first_column_(chunk * kWidth),
        writes_rows_(chunk == 0),
        band_(p, b),
        queries_(query_rows(p, b)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {}

  __device__ void run() {
    const int m_end = min(m_begin_ + t_.block_m, queries_.count);
    if (p_.mass) start_mass();
    if (m_end > m_begin_) walk(m_end);
    finish();
  }

 private:
  __device__ void walk(int m_end) {
    const bool alive = m_begin_ + warp_row_ < queries_.count;
    const Dropout<Acc> dropout(p_, b_, h_);
    const Acc factor = exponent_factor<Acc, kPlain>(p_);
    KeyWalk keys(p_, b_, band_, m_begin_, m_end - 1, kBlockN);
    KeyBlock block = keys.next();
    if (block.count == 0) return;
    load_queries();
    load_keys(block, 0);
    commit_copies();
    for (int stage = 0; block.count > 0;) {
      const KeyBlock next = keys.next();
      const int next_stage = t_.stages == 2 ? stage ^ 1 : 0;
      if (t_.stages == 2) {
        if (next.count > 0) load_keys(next, next_stage);
        commit_copies();
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
      __syncthreads();
      if (alive) step(block, stage, dropout, factor);
      __syncthreads();
      if (t_.stages == 1) {
        if (next.count > 0) load_keys(next, 0);
        commit_copies();
      }
      block = next;
      stage = next_stage;
    }
    wait_for_copies<0>();
    kept_ = dropout.kept();
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
    multiply_rows<E, kWidth>(s, query_tile(), warp_row_, t_.block_m, key_tile(stage), kBlockN,
                             t_.panels);
    const ScoreBlock<Orientation::kQueriesByKeys> scores = {
        b_, h_, m_begin_ + warp_row_, queries_.count, block, 0};
    products_to_scores<kPlain>(p_, band_, scores, s, [](int, int, Acc) {});
    Acc sum[2], correction[2];
    softmax_.add(s, factor, sum, correction);
    if (p_.mass)
#pragma unroll
      for (int r = 0; r < 2; ++r) source_sum_[r].rescale_and_add(correction[r], sum[r]);
    if (!kPlain && dropout.active()) drop(s, dropout.template dropped<kTilesN>(p_, scores));
#pragma unroll
    for (int n = 0; n < kTilesV; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] *= correction[e / 2];
    if (p_.head_dim_v > 0) multiply_weights<E>(o_, s, value_tile(stage));
  }

  // -- shared memory: queries, stages of keys, stages of values, mass, flags of keys --------------

  __device__ T* rows_from(int row) const {
    return reinterpret_cast<T*>(shared_memory()) + row * kWidth;
  }
  __device__ Tile<T, kWidth> query_tile() const { return {rows_from(0)}; }
  // Over the queries: each warp over rows that no other warp reads.
  __device__ Tile<T, kWidth> out_tile() const { return query_tile(); }
  __device__ Tile<T, kWidth> key_tile(int stage) const {
    return {rows_from(rows_of_queries() + stage * t_.panels * kBlockN)};
  }
  __device__ Tile<T, kWidth> value_tile(int stage) const {
    return {rows_from(rows_of_queries() + (t_.stages * t_.panels + stage) * kBlockN)};
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
  __device__ int rows_of_queries() const { return max(1, t_.panels) * t_.block_m; }

  __device__ void load_queries() {
    const T* base = row_at<const T>(p_.q, p_.q_stride, b_, h_, queries_.first + m_begin_);
    const GlobalRows<T> rows = {base, p_.q_stride[2], static_cast<int>(p_.head_dim),
                                aligned_.query()};
    load_tile(query_tile(), t_.panels, t_.block_m, rows, 0,
              [&](int row) { return m_begin_ + row < queries_.count; });
  }

  // Rows of keys that no query sees may hold anything: they are not read.
  __device__ void load_keys(const KeyBlock& block, int stage) {
    const KeySource& source = p_.source[block.source];
    const int64_t head = key_head(p_, block.source, h_);
    const int row = key_rows_of(source, b_).first + block.begin;
    const int last = min(m_begin_ + t_.block_m, queries_.count) - 1;
    const bool all = kPlain || source.num_terms == 0;
    bool* seen = seen_keys(stage);
    if (!all) {
      note_seen_keys(p_, block, b_, h_, m_begin_, last, kBlockN, seen);
      __syncthreads();
    }
    const auto wanted = [&](int key) {
      return block.holds(block.begin + key) && (all || seen[key]);
    };
    load_tile(key_tile(stage), t_.panels, kBlockN,
              {row_at<const T>(source.k, source.k_stride, b_, head, row), source.k_stride[2],
               static_cast<int>(p_.head_dim), aligned_.key(block.source)},
              0, wanted);
    if (p_.head_dim_v == 0) return;
    load_tile(value_tile(stage), 1, kBlockN,
              {row_at<const T>(source.v, source.v_stride, b_, head, row), source.v_stride[2],
               static_cast<int>(p_.head_dim_v), aligned_.value(block.source)},
              first_column_, wanted);
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
    if (p_.head_dim_v == 0) return;
#pragma unroll
    for (int n = 0; n < kTilesV; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Acc factor = inverse[r] * kept_;
        // By choice, not by a product with 0: a value row may have been NaN.
        const Acc low = nothing[r] ? Acc(0) : o_[n][2 * r] * factor;
        const Acc high = nothing[r] ? Acc(0) : o_[n][2 * r + 1] * factor;
        E::store_pair(out_tile().element(warp_row_ + lane / 4 + 8 * r, n * 8 + lane % 4 * 2), low,
                      high);
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
    if (p_.lse) static_cast<Acc*>(p_.lse)[at] = total.lse;
    if (p_.row_top) {
      static_cast<Acc*>(p_.row_top)[at] = total.top;
      static_cast<Acc*>(p_.row_sum)[at] = total.sum;
    }
    if (!p_.mass) return;
    for (int s = 0; s < p_.num_sources; ++s) {
      const SourceMass<Acc> share = mass_of(row, s);
      const Acc shift = exp2_of((share.top - top) * exponent_factor<Acc, kPlain>(p_));
      static_cast<Acc*>(p_.mass)[at * p_.num_sources + s] =
          nothing || share.sum == 0 ? Acc(0) : share.sum * shift * total.inverse;
    }
  }

  const Problem& p_;
  const Tiling& t_;
  Alignment aligned_;
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

// Rows [begin, end) of a packed tensor that belong to no sample see nothing.
template <class T, class Acc>
__device__ void write_unowned_rows(const Problem& p, int64_t h, const Gap& gap) {
  for (int row = gap.begin; row < gap.end; ++row) {
    T* out = row_at<T>(p.out, p.out_stride, 0, h, row);
    for (int64_t d = threadIdx.x; d < p.head_dim_v; d += blockDim.x) out[d] = T{};
    if (threadIdx.x != 0) continue;
    const int64_t at = h * p.total_q + row;
    if (p.lse) static_cast<Acc*>(p.lse)[at] = minus_infinity<Acc>();
    if (p.row_top) {
      static_cast<Acc*>(p.row_top)[at] = minus_infinity<Acc>();
      static_cast<Acc*>(p.row_sum)[at] = 0;
    }
  }
}

// Blocks to a multiprocessor that registers have to leave room for.
template <class E, int kWidth, bool kPlain>
constexpr int forward_blocks() {
  // A fourth block of width 32, or a third of width 96, would spill.
  return sizeof(typename E::Element) > 2 || kWidth > 64 || !kPlain ? 2 : 3;
}

template <class E, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMostWarps * 32, forward_blocks<E, kWidth, kPlain>())
    attention_fwd_kernel(const __grid_constant__ Problem p, const __grid_constant__ Tiling tiling,
                         Alignment aligned) {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  const int64_t tiles_m = ceil_div(p.seqlen_q, tiling.block_m);
  const int64_t tiles = p.batch * p.num_heads * tiles_m * tiling.chunks;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    // Neighbouring blocks share keys and values, which then come out of the second-level cache.
    const int chunk = static_cast<int>(tile % tiling.chunks);
    const int m_begin = static_cast<int>(tile / tiling.chunks % tiles_m) * tiling.block_m;
    const int64_t pair = tile / tiling.chunks / tiles_m;
    const int b = static_cast<int>(pair / p.num_heads), h = static_cast<int>(pair % p.num_heads);
    if (tile != blockIdx.x) __syncthreads();  // the tile before has been read
    ForwardBlock<E, kWidth, kPlain>(p, tiling, aligned, b, h, m_begin, chunk).run();
    if (!p.cu_seqlens_q || m_begin > 0 || chunk > 0) continue;
    const Rows rows = query_rows(p, b);
    write_unowned_rows<T, Acc>(p, h, gap_before(rows, b));
    write_unowned_rows<T, Acc>(p, h, gap_after(p.cu_seqlens_q, rows, b, p.batch, p.total_q));
  }
}

template <class E, int kWidth>
void launch_attention_fwd(const AttentionProblem& p, bool plain, const Tiling& tiling,
                          void* stream) {
  const int64_t tiles =
      p.batch * p.num_heads * ceil_div(p.seqlen_q, tiling.block_m) * tiling.chunks;
  const auto kernel =
      plain ? attention_fwd_kernel<E, kWidth, true> : attention_fwd_kernel<E, kWidth, false>;
  launch("attention_fwd_kernel", kernel, tiles, tiling.warps * kWarp, tiling.shared_bytes, stream,
         as_parameter(p), tiling, Alignment(p));
}

}  // namespace crossmodal::cuda
