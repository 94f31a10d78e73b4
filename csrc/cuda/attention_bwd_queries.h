// Backward, first pass: a block owns 16 queries to a warp and walks the keys of all sources for
//
//   delta, where it has to be exact, or rowsum(dout * out) + rowsum(dmass * mass) - dlse
//   dQ = scale * dS K, the gradients of terms that differ between queries, each row's share of
//   dsink
#pragma once

#include "cuda/attention_bwd.h"
#include "cuda/block_pipeline.h"
#include "cuda/key_loads.h"
#include "cuda/merge_dq.h"
#include "cuda/query_tiles.h"

namespace crossmodal::cuda {

template <class E, int kWidth, bool kPlain>
class QueryPass {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockN = backward_block(sizeof(T));
  static constexpr int kTilesN = kBlockN / 8, kPerChunk = Tile<T, kWidth>::kPerChunk;
  static constexpr bool kOnePanel = kPlain && sizeof(T) == 2;  // see rows_may_be_plain
  using Weights = WeightBlock<T, Acc, kPlain, kTilesN>;
  using Divisor = typename Weights::Divisor;
  using Block = ScoreBlock<Orientation::kQueriesByKeys>;
  // Both walks are one piece of code, which takes half as long to compile, but where rows are so
  // wide that its registers do not suffice for what either needs.
  static constexpr bool kWalksApart = !kPlain && sizeof(T) * kWidth > 192;

 public:
  __device__ QueryPass(const BackwardProblem& p, const Tiling& tiling, const Alignment& aligned,
                       int b, int h, int m_begin, int chunk, Share share = {0, 1})
      : p_(p),
        t_(tiling),
        aligned_(aligned),
        b_(b),
        h_(h),
        m_begin_(m_begin),
        chunk_(kOnePanel ? 0 : chunk),
        share_(share),
        band_(p, b),
        queries_(query_rows(p, b)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {}

  __device__ void run() {
    const bool some = m_begin_ < queries_.count;
    if (some) {
      load_queries();
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
    }
    start_rows();
    // Where delta has to be exact a walk for it comes first. Nothing that needs it is left where
    // scores are plain.
    const bool is_exact = !kPlain && p_.exact_delta;
    if constexpr (kWalksApart) {
      if (some && is_exact) walk(true);
      finish_delta();
      if (p_.gradient.dq || writes_terms())
        if (some) walk(false);
    } else {
#pragma unroll 1
      for (int walks = is_exact ? 0 : 1; walks < 2; ++walks) {
        if (walks == 1) finish_delta();
        if (walks == 1 && !p_.gradient.dq && (kPlain || !writes_terms())) return;
        if (some) walk(walks == 0);
      }
    }
    if (!p_.gradient.dq) return;
    if (share_.of == 1) {
      store_dq();
    } else {
      leave_dq();
    }
  }

 private:
  // -- shared memory: queries, dout, stages of keys and of values, flags of keys
  // -------------------

  __device__ int panels() const { return kOnePanel ? 1 : t_.panels; }
  __device__ int panels_v() const { return kOnePanel ? 1 : t_.panels_v; }
  __device__ T* rows_from(int row) const {
    return reinterpret_cast<T*>(shared_memory()) + row * kWidth;
  }
  __device__ Tile<T, kWidth> query_tile() const { return {rows_from(0)}; }
  __device__ Tile<T, kWidth> dout_tile() const { return {rows_from(rows_of_queries())}; }
  __device__ Tile<T, kWidth> key_tile(int stage) const {
    return {rows_from(rows_of_queries() + panels_v() * t_.block_m +
                      stage * max(1, panels()) * kBlockN)};
  }
  __device__ Tile<T, kWidth> value_tile(int stage) const {
    return {key_tile(t_.stages).data + stage * panels_v() * kBlockN * kWidth};
  }
  __device__ bool* seen_keys(int stage) const {
    return reinterpret_cast<bool*>(value_tile(t_.stages).data) + stage * kBlockN;
  }
  // Without features dQ still needs a place.
  __device__ int rows_of_queries() const { return max(1, panels()) * t_.block_m; }

  __device__ bool is_live(int row) const {
    return !is_dead<Acc>(p_, b_, h_, queries_, m_begin_ + row);
  }

  __device__ void load_queries() {
    const int first = queries_.first + m_begin_;
    const auto load_rows = [&](auto live) {
      load_tile(query_tile(), panels(), t_.block_m,
                {row_at<const T>(p_.q, p_.q_stride, b_, h_, first), p_.q_stride[2],
                 static_cast<int>(p_.head_dim), aligned_.query()},
                0, live);
      load_tile(dout_tile(), panels_v(), t_.block_m,
                {row_at<const T>(p_.gradient.dout, p_.gradient.dout_stride, b_, h_, first),
                 p_.gradient.dout_stride[2], static_cast<int>(p_.head_dim_v), aligned_.dout()},
                0, live);
    };
    // Here only numbers that are not finite let a query see nothing: start_rows clears its rows.
    if (kOnePanel && band_.open) {
      load_rows([&](int row) { return m_begin_ + row < queries_.count; });
    } else {
      load_rows([&](int row) { return is_live(row); });
    }
  }

  // -- rows ------------------------------------------------------------------------------------

  __device__ int row_of(int r) const {
    return warp_row_ + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
  }

  // What of delta is known before the weights are: -dlse, and where it need not be exact the rest.
  __device__ void start_rows() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = m_begin_ + row_of(r);
      rows_[r] = RowState<Acc>{0, Divisor::nothing(), 0, 0};
      if (!is_live(row_of(r))) {
        if (kOnePanel && band_.open) clear_row(row_of(r));
        continue;
      }
      const int64_t at = row_index(p_, b_, h_, queries_, i);
      rows_[r].top = static_cast<const Acc*>(p_.row_top)[at];
      rows_[r].inverse = Divisor::of(static_cast<const Acc*>(p_.row_sum)[at]);
      if (p_.gradient.dlse) rows_[r].delta = -static_cast<const Acc*>(p_.gradient.dlse)[at];
      if (p_.exact_delta) continue;
      // A quad shares the sums of its row.
      const T* out = row_at<const T>(p_.out, p_.out_stride, b_, h_, queries_.first + i);
      Acc sum = 0;
      for (int d = lane % 4 * kPerChunk; d < p_.head_dim_v; d += 4 * kPerChunk)
        sum += product_with_dout(out, row_of(r), d);
      if (p_.gradient.dmass)
        for (int s = lane % 4; s < p_.num_sources; s += 4)
          sum += static_cast<const Acc*>(p_.gradient.dmass)[at * p_.num_sources + s] *
                 static_cast<const Acc*>(p_.mass)[at * p_.num_sources + s];
      weighted_[r].value = sum;
    }
    __syncwarp();
  }

  // One that its quad alone reads.
  __device__ void clear_row(int row) {
    for (int c = static_cast<int>(threadIdx.x) % 4; c < Tile<T, kWidth>::kChunks; c += 4) {
      *reinterpret_cast<Chunk*>(query_tile().chunk(row, c)) = {};
      *reinterpret_cast<Chunk*>(dout_tile().chunk(row, c)) = {};
    }
  }

  // Of a chunk of columns from d on.
  __device__ Acc product_with_dout(const T* out, int row, int d) const {
    const T* dout = dout_tile().panel(d / kWidth, t_.block_m).element(row, d % kWidth);
    alignas(16) T values[kPerChunk] = {};
    if (aligned_.out() && d + kPerChunk <= p_.head_dim_v) {
      *reinterpret_cast<Chunk*>(values) = *reinterpret_cast<const Chunk*>(out + d);
    } else {
#pragma unroll
      for (int e = 0; e < kPerChunk; ++e)
        if (d + e < p_.head_dim_v) values[e] = out[d + e];
    }
    Acc sum = 0;
#pragma unroll
    for (int e = 0; e < kPerChunk; ++e) sum += E::load(values[e]) * E::load(dout[e]);
    return sum;
  }

  __device__ void finish_delta() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = m_begin_ + row_of(r);
      const Acc sum = sum_of_quad(weighted_[r].value);
      rows_[r].delta += sum;
      if (lane % 4 != 0 || chunk_ != 0 || share_.index != 0 || i >= queries_.count) continue;
      const int64_t at = row_index(p_, b_, h_, queries_, i);
      static_cast<RowState<Acc>*>(p_.rows)[at] = rows_[r];
      if (p_.row_dsink) p_.row_dsink[at] = sink_share(at, rows_[r]);
    }
  }

  // The sink is a key of value 0: dS_sink = P_sink * (0 - delta). Where only the sink is left, it
  // is lse.
  __device__ double sink_share(int64_t at, const RowState<Acc>& row) const {
    const Acc sink = sink_of<Acc>(p_, b_, h_);
    if (sink == minus_infinity<Acc>()) return 0;
    if (row.inverse == 0)
      return p_.gradient.dlse ? static_cast<const Acc*>(p_.gradient.dlse)[at] : Acc(0);
    const Acc share = exp2_of((sink - row.top) * static_cast<Acc>(kLog2E)) * row.inverse;
    return -static_cast<double>(share) * row.delta;
  }

  // -- keys ------------------------------------------------------------------------------------

  __device__ __forceinline__ void walk(bool for_delta) {
    const bool alive = m_begin_ + warp_row_ < queries_.count;
    const Dropout<Acc> dropout(p_, b_, h_);
    const int m_end = min(m_begin_ + t_.block_m, queries_.count);
    KeyWalk keys(p_, b_, band_, m_begin_, m_end - 1, kBlockN, share_);
    KeyLoads<T, kPlain> loads(p_, aligned_, b_, h_, m_begin_, m_end - 1);
    walk_blocks(
        keys, t_.stages,
        [&](const KeyBlock& block, int stage) {
          loads.template load<kBlockN>(block, seen_keys(stage), key_tile(stage), panels(),
                                       value_tile(stage), panels_v(), 0);
        },
        [&](const KeyBlock& block, int stage) {
          if (alive) step(for_delta, block, stage, dropout);
        });
    if (!for_delta && alive && !kPlain && chunk_ == 0) end_source();
    source_ = -1;
  }

  __device__ __forceinline__ void step(bool for_delta, const KeyBlock& keys, int stage,
                                       const Dropout<Acc>& dropout) {
    if (keys.source != source_) {
      if (!for_delta && !kPlain && chunk_ == 0) end_source();
      source_ = keys.source;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (p_.gradient.dmass && rows_[r].inverse != Divisor::nothing())
          rows_[r].dmass = static_cast<const Acc*>(
              p_.gradient
                  .dmass)[row_index(p_, b_, h_, queries_, m_begin_ + row_of(r)) * p_.num_sources +
                          source_];
    }
    Weights w;
    clear(w.weight);
    clear(w.gradient);
    multiply_rows<E, kWidth>(w.weight, query_tile(), warp_row_, t_.block_m, key_tile(stage),
                             kBlockN, panels());
    multiply_rows<E, kWidth>(w.gradient, dout_tile(), warp_row_, t_.block_m, value_tile(stage),
                             kBlockN, panels_v());
    const Block block = {b_, h_, m_begin_ + warp_row_, queries_.count, keys, 0};
    const auto state = [&](int, int e) { return rows_[e / 2]; };
    w.rebuild(p_, band_, block, dropout, state);
    if (for_delta) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Acc sum = 0;
#pragma unroll
        for (int t = 0; t < kTilesN; ++t)
          sum += w.weighted(t, 2 * r, rows_[r]) + w.weighted(t, 2 * r + 1, rows_[r]);
        weighted_[r].rescale_and_add(1, sum);
      }
    } else {
      w.to_scores(band_, state);
      if constexpr (!kPlain)
        if (chunk_ == 0) add_term_gradients(keys, block, w);
      w.to_products(p_);
      // Where dS is 0 because the key is hidden from this query, a NaN in K must not make it NaN;
      // queries that see the key have NaN in dS already.
      if (!p_.gradient.dq) return;
      const Tile<T, kWidth> rows = key_tile(stage).panel(chunk_, kBlockN);
      if (kPlain && band_.open) {
        multiply_weights<E>(dq_, w.gradient, rows);
      } else {
        multiply_weights<E>(dq_, w.gradient, rows, true);
      }
    }
  }

  // -- terms -----------------------------------------------------------------------------------

  __device__ bool writes_terms() const {
    if (chunk_ != 0) return false;
    for (int s = 0; s < p_.num_sources; ++s)
      for (int t = 0; t < p_.source[s].num_terms; ++t) {
        const ScoreTerm& term = p_.source[s].terms[t];
        if (term.grad && (is_dense(term) ? !is_summed(p_, term) : term.grad_stride[2] != 0))
          return true;
      }
    return false;
  }

  __device__ __forceinline__ void add_term_gradients(const KeyBlock& keys, const Block& block,
                                                     Weights& w) {
    const KeySource& source = p_.source[keys.source];
    for (int t = 0; t < source.num_terms; ++t) {
      const ScoreTerm& term = source.terms[t];
      if (!term.grad || !is_dense(term) || is_summed(p_, term)) continue;
      const Acc factor = static_cast<Acc>(term.factor);
      block.for_each_of(w.gradient, term.grad_stride, [&](Acc& x, int i, int j, int64_t at) {
        if (block.holds(i, j)) static_cast<Acc*>(term.grad)[at] = factor * x;
      });
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Acc sum = 0;
#pragma unroll
      for (int t = 0; t < kTilesN; ++t) sum += w.gradient[t][2 * r] + w.gradient[t][2 * r + 1];
      source_sum_[r] += sum;
    }
  }

  // Sums over the keys of a source, for terms that are the same for all of them.
  __device__ void end_source() {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const double sum = sum_of_quad(source_sum_[r]);
      source_sum_[r] = 0;
      const int i = m_begin_ + row_of(r);
      if (source_ < 0 || lane % 4 != 0 || i >= queries_.count) continue;
      const KeySource& source = p_.source[source_];
      for (int t = 0; t < source.num_terms; ++t) {
        const ScoreTerm& term = source.terms[t];
        if (!term.grad || term.grad_stride[3] != 0 || term.grad_stride[2] == 0) continue;
        static_cast<double*>(term.grad)[b_ * term.grad_stride[0] + h_ * term.grad_stride[1] +
                                        i * term.grad_stride[2]] = term.factor * sum;
      }
    }
  }

  // Rows that see nothing have gradient 0; padded ones beyond the sample's length are such rows
  // too.
  __device__ void store_dq() {
    const int lane = threadIdx.x % 32;
    const Acc scale = static_cast<Acc>(p_.scale);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool none = rows_[r].inverse == Divisor::nothing();
        E::store_pair(query_tile().element(row_of(r), n * 8 + lane % 4 * 2),
                      none ? Acc(0) : dq_[n][2 * r] * scale,
                      none ? Acc(0) : dq_[n][2 * r + 1] * scale);
      }
    __syncwarp();
    const int count = p_.cu_seqlens_q ? queries_.count : static_cast<int>(p_.seqlen_q);
    const AttentionBackward& g = p_.gradient;
    store_tile(query_tile(), warp_row_, min(kWarpRows, count - m_begin_ - warp_row_),
               row_at<T>(g.dq, g.dq_stride, b_, h_, queries_.first + m_begin_ + warp_row_),
               g.dq_stride[2], chunk_ * kWidth, static_cast<int>(p_.head_dim), aligned_.dq(), lane);
  }

  // What one share of the keys comes to, for merge_dq_kernel: of all rows that it will read.
  __device__ void leave_dq() {
    const int lane = threadIdx.x % 32, width = static_cast<int>(p_.head_dim);
    const int count = p_.cu_seqlens_q ? queries_.count : static_cast<int>(p_.seqlen_q);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = m_begin_ + row_of(r);
      if (i >= count) continue;
      Acc* to = dq_share<Acc>(p_, share_.index, b_, h_, i);
      const bool none = rows_[r].inverse == Divisor::nothing();
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = n * 8 + lane % 4 * 2 + e;
          if (column < width) to[column] = none ? Acc(0) : dq_[n][2 * r + e];
        }
    }
  }

  const BackwardProblem& p_;
  const Tiling& t_;
  const Alignment& aligned_;
  int b_, h_, m_begin_, chunk_;
  Share share_;
  Band band_;
  Rows queries_;
  int warp_row_;
  int source_ = -1;

  RowState<Acc> rows_[2];
  LongSum<Acc> weighted_[2];
  double source_sum_[2] = {0, 0};
  Acc dq_[kWidth / 8][4] = {};
};

// Rows of a packed tensor that belong to no sample have gradient 0.
template <class T>
__device__ void clear_unowned_rows(T* base, const int64_t (&stride)[3], int64_t h, int64_t width,
                                   const Gap& gap) {
  for (int row = gap.begin; row < gap.end; ++row)
    for (int64_t d = threadIdx.x; d < width; d += blockDim.x)
      row_at<T>(base, stride, 0, h, row)[d] = T{};
}

template <class E>
__device__ void clear_rows_of_no_query(const BackwardProblem& p, int b, int h) {
  using T = typename E::Element;
  if (!p.cu_seqlens_q || !p.gradient.dq) return;
  const Rows rows = query_rows(p, b);
  T* dq = static_cast<T*>(p.gradient.dq);
  clear_unowned_rows(dq, p.gradient.dq_stride, h, p.head_dim, gap_before(rows, b));
  clear_unowned_rows(dq, p.gradient.dq_stride, h, p.head_dim,
                     gap_after(p.cu_seqlens_q, rows, b, p.batch, p.total_q));
}

template <class E, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMostWarps * 32, backward_blocks<E, kWidth, kPlain>())
    attention_bwd_queries_kernel(const __grid_constant__ BackwardProblem p,
                                 const __grid_constant__ Tiling tiling,
                                 const __grid_constant__ Alignment aligned,
                                 const __grid_constant__ QueryGrid grid,
                                 const __grid_constant__ TileQueue queue, int shares) {
  for (BlockTiles tiles(queue, tiling); tiles.next(grid.tiles * shares);) {
    const int share = shares == 1 ? 0 : static_cast<int>(tiles.tile() / grid.tiles);
    const QueryTile at = query_tile_at(p, tiling, grid, queue, tiles.tile() - share * grid.tiles);
    QueryPass<E, kWidth, kPlain>(p, tiling, aligned, at.b, at.h, at.m_begin, at.chunk,
                                 {share, shares})
        .run();
    if (at.m_begin == 0 && at.chunk == 0 && share == 0) clear_rows_of_no_query<E>(p, at.b, at.h);
  }
}

}  // namespace crossmodal::cuda
