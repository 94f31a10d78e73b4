// Backward, third pass: gradients of dense terms that are the same for several samples or heads. A
// block owns a tile of queries by keys of one term and walks the samples and heads that share it,
// so that their sum is formed in one order and needs no memory of its own.
#pragma once

#include "cuda/attention_bwd_queries.h"

namespace crossmodal::cuda {

struct TermTile {
  int source, term;
  int b, h;  // of the gradient; 0 where it is a sum over them
  int m_begin;
  KeyBlock keys;
};

__device__ __host__ inline int64_t term_tiles(const AttentionProblem& p, const KeySource& source,
                                              const ScoreTerm& term, int block_m, int block_n) {
  if (!term.grad || !is_dense(term) || !is_summed(p, term)) return 0;
  const int64_t kept =
      (term.grad_stride[0] ? p.batch : 1) * (term.grad_stride[1] ? p.num_heads : 1);
  // One block more: with dropout the first may begin before the first key.
  return kept * ceil_div(p.seqlen_q, block_m) * (ceil_div(source.seqlen_k, block_n) + 1);
}

__device__ inline TermTile term_tile_at(const BackwardProblem& p, int block_m, int block_n,
                                        int64_t tile) {
  int offset = 0;
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.source[s];
    for (int t = 0; t < source.num_terms; ++t) {
      const ScoreTerm& term = source.terms[t];
      const int64_t tiles = term_tiles(p, source, term, block_m, block_n);
      if (tile >= tiles) {
        tile -= tiles;
        continue;
      }
      const int64_t tiles_n = ceil_div(source.seqlen_k, block_n) + 1;
      const int64_t tiles_m = ceil_div(p.seqlen_q, block_m);
      const int64_t heads = term.grad_stride[1] ? p.num_heads : 1, kept = tile / tiles_n / tiles_m;
      const int begin = static_cast<int>(tile % tiles_n) * block_n - offset % 4;
      return {s,
              t,
              static_cast<int>(kept / heads),
              static_cast<int>(kept % heads),
              static_cast<int>(tile / tiles_n % tiles_m) * block_m,
              {s, begin, block_n}};
    }
    offset += static_cast<int>(source.seqlen_k);
  }
  return {};
}

template <class E, int kWidth>
class TermPass {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockN = backward_block(sizeof(T));
  static constexpr int kTilesN = kBlockN / 8;
  using Block = ScoreBlock<Orientation::kQueriesByKeys>;

 public:
  __device__ TermPass(const BackwardProblem& p, const Tiling& tiling, const Alignment& aligned,
                      const TermTile& tile)
      : p_(p),
        t_(tiling),
        aligned_(aligned),
        tile_(tile),
        source_(p.source[tile.source]),
        term_(source_.terms[tile.term]),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {}

  __device__ void run() {
    const bool over_b = term_.grad_stride[0] == 0, over_h = term_.grad_stride[1] == 0;
    const int last_b = over_b ? static_cast<int>(p_.batch) : tile_.b + 1;
    const int last_h = over_h ? static_cast<int>(p_.num_heads) : tile_.h + 1;
    for (int b = tile_.b; b < last_b; ++b)
      for (int h = tile_.h; h < last_h; ++h) add(b, h);
    const Acc factor = static_cast<Acc>(term_.factor);
    const Block block = {
        tile_.b, tile_.h, tile_.m_begin + warp_row_, static_cast<int>(p_.seqlen_q), tile_.keys, 0};
    block.for_each_of(sum_, term_.grad_stride, [&](Acc& x, int i, int j, int64_t at) {
      if (i < p_.seqlen_q && j >= 0 && j < source_.seqlen_k)
        static_cast<Acc*>(term_.grad)[at] = factor * x;
    });
  }

 private:
  __device__ Tile<T, kWidth> tile_from(int row) const {
    return {reinterpret_cast<T*>(shared_memory()) + row * kWidth};
  }
  __device__ Tile<T, kWidth> query_tile() const { return tile_from(0); }
  __device__ Tile<T, kWidth> dout_tile() const { return tile_from(t_.panels * t_.block_m); }
  __device__ Tile<T, kWidth> key_tile() const {
    return tile_from((t_.panels + t_.panels_v) * t_.block_m);
  }
  __device__ Tile<T, kWidth> value_tile() const {
    return {key_tile().data + t_.panels * kBlockN * kWidth};
  }
  __device__ bool* seen_keys() const {
    return reinterpret_cast<bool*>(value_tile().data + t_.panels_v * kBlockN * kWidth);
  }

  __device__ void load(int b, int h, const Rows& queries, const KeyBlock& keys) {
    const int last = min(tile_.m_begin + t_.block_m, queries.count) - 1;
    bool* seen = seen_keys();
    note_seen_keys(p_, keys, b, h, tile_.m_begin, last, kBlockN, seen);
    __syncthreads();
    const auto live = [&](int row) {
      return !is_dead<Acc>(p_, b, h, queries, tile_.m_begin + row);
    };
    const auto wanted = [&](int key) { return keys.holds(keys.begin + key) && seen[key]; };
    const int head = key_head(p_, tile_.source, h), s = tile_.source;
    load_tile(query_tile(), t_.panels, t_.block_m,
              {row_at<const T>(p_.q, p_.q_stride, b, h, tile_.m_begin), p_.q_stride[2],
               static_cast<int>(p_.head_dim), aligned_.query()},
              0, live);
    load_tile(key_tile(), t_.panels, kBlockN,
              {row_at<const T>(source_.k, source_.k_stride, b, head, keys.begin),
               source_.k_stride[2], static_cast<int>(p_.head_dim), aligned_.key(s)},
              0, wanted);
    if (t_.panels_v == 0) return;
    load_tile(dout_tile(), t_.panels_v, t_.block_m,
              {row_at<const T>(p_.gradient.dout, p_.gradient.dout_stride, b, h, tile_.m_begin),
               p_.gradient.dout_stride[2], static_cast<int>(p_.head_dim_v), aligned_.dout()},
              0, live);
    load_tile(value_tile(), t_.panels_v, kBlockN,
              {row_at<const T>(source_.v, source_.v_stride, b, head, keys.begin),
               source_.v_stride[2], static_cast<int>(p_.head_dim_v), aligned_.value(s)},
              0, wanted);
  }

  // The share of one sample and head.
  __device__ void add(int b, int h) {
    const Rows queries = query_rows(p_, b);
    KeyBlock keys = tile_.keys;
    keys.count = min(keys.count, key_rows_of(source_, b).count - keys.begin);
    if (keys.begin + keys.count <= 0 || keys.count <= 0 || tile_.m_begin >= queries.count) return;
    __syncthreads();  // the share before has been read
    load(b, h, queries, keys);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();

    WeightBlock<T, Acc, false, kTilesN> w;
    clear(w.weight);
    clear(w.gradient);
    multiply_rows<E, kWidth>(w.weight, query_tile(), warp_row_, t_.block_m, key_tile(), kBlockN,
                             t_.panels);
    multiply_rows<E, kWidth>(w.gradient, dout_tile(), warp_row_, t_.block_m, value_tile(), kBlockN,
                             t_.panels_v);
    const int row = tile_.m_begin + warp_row_, quad = static_cast<int>(threadIdx.x) % 32 / 4;
    const RowState<Acc> rows[2] = {
        row_state<Acc>(p_, b, h, queries, row + quad, tile_.source, Acc(0)),
        row_state<Acc>(p_, b, h, queries, row + quad + 8, tile_.source, Acc(0))};
    const auto state = [&](int, int e) { return rows[e / 2]; };
    const Block block = {b, h, row, queries.count, keys, 0};
    const Band band(p_, b);
    w.rebuild(p_, band, block, Dropout<Acc>(p_, b, h), state);
    w.to_scores(band, state);
#pragma unroll
    for (int t = 0; t < kTilesN; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum_[t][e] += w.gradient[t][e];
  }

  const BackwardProblem& p_;
  const Tiling& t_;
  const Alignment& aligned_;
  TermTile tile_;
  const KeySource& source_;
  const ScoreTerm& term_;
  int warp_row_;
  Acc sum_[kTilesN][4] = {};
};

template <class E, int kWidth>
__global__ void __launch_bounds__(kMostWarps * 32, 2)
    attention_bwd_terms_kernel(const __grid_constant__ BackwardProblem p,
                               const __grid_constant__ Tiling tiling,
                               const __grid_constant__ Alignment aligned, int64_t tiles) {
  constexpr int kBlockN = backward_block(sizeof(typename E::Element));
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
    TermPass<E, kWidth>(p, tiling, aligned, term_tile_at(p, tiling.block_m, kBlockN, tile)).run();
}

}  // namespace crossmodal::cuda
