// Backward, second pass: a block owns 16 keys to a warp and walks the queries of all heads that
// share them for
//
//   dV = dropped(P)^T dout,  dK = scale * dS^T Q, the gradients of terms that are the same for
//   every query
//
// It computes S^T = K Q^T, whose accumulators are, as P^T and dS^T, the operands that dV and dK
// need.
#pragma once

#include "cuda/attention_bwd_queries.h"
#include "cuda/key_tiles.h"

namespace crossmodal::cuda {

template <class E, int kWidth, bool kPlain>
class KeyPass {
  using T = typename E::Element;
  using Acc = typename E::Acc;
  static constexpr int kBlockQ = key_pass_block(sizeof(T), kWidth);
  static constexpr int kTilesQ = kBlockQ / 8;
  static constexpr bool kOnePanel = kPlain && sizeof(T) == 2;  // see rows_may_be_plain
  using Weights = WeightBlock<T, Acc, kPlain, kTilesQ>;
  using Divisor = typename Weights::Divisor;
  using Block = ScoreBlock<Orientation::kKeysByQueries>;

 public:
  __device__ KeyPass(const BackwardProblem& p, const Tiling& tiling, const Alignment& aligned,
                     const KeyTile& tile)
      : p_(p),
        t_(tiling),
        aligned_(aligned),
        tile_(tile),
        source_(p.source[tile.keys.source]),
        band_(p, tile.b),
        queries_(query_rows(p, tile.b)),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * kWarpRows) {
    seen_ = tile.keys;
    seen_.count = max(0, min(seen_.count, rows().count - seen_.begin));
  }

  __device__ void run() {
    if (seen_.count > 0) walk();
    store();
  }

 private:
  // -- shared memory: keys, values, stages of queries and of dout, of their states, flags
  // ----------

  // Looked up where they are needed: every register counts.
  __device__ Rows rows() const { return key_rows_of(source_, tile_.b); }
  __device__ int panels() const { return kOnePanel ? 1 : t_.panels; }
  __device__ int panels_v() const { return kOnePanel ? 1 : t_.panels_v; }
  __device__ T* rows_from(int row) const {
    return reinterpret_cast<T*>(shared_memory()) + row * kWidth;
  }
  // Without features the gradients still need a place.
  __device__ Tile<T, kWidth> key_tile() const { return {rows_from(0)}; }
  __device__ Tile<T, kWidth> value_tile() const {
    return {rows_from(max(1, panels()) * t_.block_m)};
  }
  __device__ Tile<T, kWidth> query_tile(int stage) const {
    return {rows_from((max(1, panels()) + max(1, panels_v())) * t_.block_m +
                      stage * panels() * kBlockQ)};
  }
  __device__ Tile<T, kWidth> dout_tile(int stage) const {
    return {query_tile(t_.stages).data + stage * panels_v() * kBlockQ * kWidth};
  }
  __device__ RowState<Acc>* states(int stage) const {
    return reinterpret_cast<RowState<Acc>*>(dout_tile(t_.stages).data) + stage * kBlockQ;
  }
  __device__ bool* seen_keys() const { return reinterpret_cast<bool*>(states(t_.stages)); }

  // -- walking the queries -----------------------------------------------------------------------

  struct QueryBlock {
    int h, begin;
    int count;  // 0: there is none
  };

  // Blocks of the queries of each head, as far as they reach the block's keys.
  struct QueryWalk {
    const KeyPass& pass;
    int first, end;  // of the queries of each head
    int h, begin;

    __device__ QueryBlock next() {
      if (begin >= end) {
        begin = first;
        ++h;
      }
      if (first >= end || h >= pass.last_head()) return {h, begin, 0};
      const QueryBlock block = {h, begin, min(kBlockQ, end - begin)};
      begin += kBlockQ;
      return block;
    }
  };

  __device__ QueryWalk queries_in_reach() const {
    QueryWalk walk = {*this, 0, queries_.count, first_head(), 0};
    if (!band_.open) {
      const int j_first = max(seen_.begin, 0), j_last = seen_.begin + seen_.count - 1;
      walk.begin = walk.first = max(0, j_first - band_.last);
      walk.end = min(walk.end, j_last - band_.first + 1);
    }
    return walk;
  }
  __device__ int first_head() const { return tile_.head * p_.group[tile_.keys.source]; }
  __device__ int last_head() const { return first_head() + p_.group[tile_.keys.source]; }

  __device__ void walk() {
    QueryWalk queries = queries_in_reach();
    if (queries.first >= queries.end) return;
    load_keys();
    const bool alive = warp_row_ < seen_.count;  // counted, like rows, from seen_.begin on
    int head = first_head();
    walk_blocks(
        queries, t_.stages, [&](const QueryBlock& block, int stage) { load_queries(block, stage); },
        [&](const QueryBlock& block, int stage) {
          if (block.h != head) end_head(head);
          head = block.h;
          if (kOnePanel && band_.open) clear_dead_queries(block, stage);
          if (alive) step(block, stage);
        });
    end_head(head);
  }

  // Keys that no query of any head sees may hold anything.
  __device__ void load_keys() {
    const bool all = kPlain || source_.num_terms == 0;
    bool* seen = seen_keys();
    if (!all) {
      for (int x = threadIdx.x; x < t_.block_m; x += blockDim.x) {
        const int j = seen_.begin + x;
        bool some = false;
        if (seen_.holds(j))
          for (int h = first_head(); h < last_head() && !some; ++h)
            some = is_seen(p_, source_, tile_.b, h, 0, queries_.count - 1, j);
        seen[x] = some;
      }
      __syncthreads();
    }
    const auto wanted = [&](int key) {
      return seen_.holds(seen_.begin + key) && (all || seen[key]);
    };
    const int row = rows().first + seen_.begin, s = seen_.source;
    load_tile(key_tile(), panels(), t_.block_m,
              {row_at<const T>(source_.k, source_.k_stride, tile_.b, tile_.head, row),
               source_.k_stride[2], static_cast<int>(p_.head_dim), aligned_.key(s)},
              0, wanted);
    if (panels_v() == 0) return;
    load_tile(value_tile(), panels_v(), t_.block_m,
              {row_at<const T>(source_.v, source_.v_stride, tile_.b, tile_.head, row),
               source_.v_stride[2], static_cast<int>(p_.head_dim_v), aligned_.value(s)},
              0, wanted);
  }

  __device__ void load_queries(const QueryBlock& block, int stage) {
    load_states(block, stage);
    const int row = queries_.first + block.begin;
    const AttentionBackward& g = p_.gradient;
    const auto load_rows = [&](auto live) {
      load_tile(query_tile(stage), panels(), kBlockQ,
                {row_at<const T>(p_.q, p_.q_stride, tile_.b, block.h, row), p_.q_stride[2],
                 static_cast<int>(p_.head_dim), aligned_.query()},
                0, live);
      load_tile(dout_tile(stage), panels_v(), kBlockQ,
                {row_at<const T>(g.dout, g.dout_stride, tile_.b, block.h, row), g.dout_stride[2],
                 static_cast<int>(p_.head_dim_v), aligned_.dout()},
                0, live);
    };
    if (kOnePanel && band_.open) {  // every query sees this block's keys
      load_rows([&](int i) { return i < block.count; });
    } else {
      load_rows(
          [&](int i) { return !is_dead<Acc>(p_, tile_.b, block.h, queries_, block.begin + i); });
    }
  }

  __device__ void load_states(const QueryBlock& block, int stage) {
    for (int x = threadIdx.x; x < kBlockQ; x += blockDim.x) {
      RowState<Acc>* state = states(stage) + x;
      if (p_.gradient.dmass || x >= block.count) {
        *state = row_state<Acc>(p_, tile_.b, block.h, queries_, block.begin + x, seen_.source,
                                Divisor::nothing());
        continue;
      }
      const int64_t at = row_index(p_, tile_.b, block.h, queries_, block.begin + x);
      const char* from = static_cast<const char*>(p_.rows) + at * sizeof(*state);
#pragma unroll
      for (size_t byte = 0; byte < sizeof(*state); byte += 16)
        copy_async(reinterpret_cast<char*>(state) + byte, from + byte);
    }
  }

  // Numbers that are not finite let a query see nothing even here; its rows may then not meet any.
  // Every warp finds the same.
  __device__ __forceinline__ void clear_dead_queries(const QueryBlock& block, int stage) {
    static_assert(kBlockQ <= 32, "a lane looks at a query");
    const int row = static_cast<int>(threadIdx.x) % 32;
    const bool dead = row < block.count && states(stage)[row].inverse == Divisor::nothing();
    if (!__any_sync(0xffffffffu, dead)) return;
    if (dead && threadIdx.x < 32)
      for (int c = 0; c < Tile<T, kWidth>::kChunks; ++c) {
        *reinterpret_cast<Chunk*>(query_tile(stage).chunk(row, c)) = {};
        *reinterpret_cast<Chunk*>(dout_tile(stage).chunk(row, c)) = {};
      }
    __syncthreads();
  }

  // -- products ----------------------------------------------------------------------------------

  __device__ __forceinline__ void step(const QueryBlock& queries, int stage) {
    Weights w;
    clear(w.weight);
    clear(w.gradient);
    multiply_rows<E, kWidth>(w.weight, key_tile(), warp_row_, t_.block_m, query_tile(stage),
                             kBlockQ, panels());
    multiply_rows<E, kWidth>(w.gradient, value_tile(), warp_row_, t_.block_m, dout_tile(stage),
                             kBlockQ, panels_v());
    const Dropout<Acc> dropout(p_, tile_.b, queries.h);
    const Block block = {tile_.b, queries.h, queries.begin, queries_.count, seen_, warp_row_};
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
    const RowState<Acc>* rows = states(stage);
    const auto state = [&](int t, int e) { return rows[t * 8 + column + e % 2]; };
    w.rebuild(p_, band_, block, dropout, state);
    w.to_scores(band_, state);
    if constexpr (!kPlain) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Acc sum = 0;
#pragma unroll
        for (int t = 0; t < kTilesQ; ++t) sum += w.gradient[t][2 * r] + w.gradient[t][2 * r + 1];
        key_sum_[r] += sum;
      }
    }
    w.to_products(p_);
    if constexpr (!kPlain) drop(w.weight, w.dropped);
    const bool in_k = kOnePanel || tile_.chunk < panels();
    const bool in_v = kOnePanel || tile_.chunk < panels_v();
    if (source_.dv && in_v)
      multiply_weights<E>(dv_, w.weight, dout_tile(stage).panel(tile_.chunk, kBlockQ));
    if (source_.dk && in_k)
      multiply_weights<E>(dk_, w.gradient, query_tile(stage).panel(tile_.chunk, kBlockQ));
  }

  // Sums over the queries of a head, for terms that are the same for all of them.
  __device__ void end_head(int h) {
    if constexpr (!kPlain) {
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const double sum = sum_of_quad(key_sum_[r]);
        key_sum_[r] = 0;
        const int j = seen_.begin + warp_row_ + lane / 4 + 8 * r;
        if (tile_.chunk != 0 || lane % 4 != 0 || !seen_.holds(j)) continue;
        for (int t = 0; t < source_.num_terms; ++t) {
          const ScoreTerm& term = source_.terms[t];
          if (!term.grad || term.grad_stride[2] != 0) continue;
          static_cast<double*>(term.grad)[tile_.b * term.grad_stride[0] + h * term.grad_stride[1] +
                                          j * term.grad_stride[3]] = term.factor * sum;
        }
      }
    }
  }

  // -- results: keys beyond the sample's length are written too, with 0
  // ----------------------------

  __device__ void store() {
    const Dropout<Acc> dropout(p_, 0, 0);
    const int s = seen_.source;
    if (source_.dk)
      store(dk_, static_cast<Acc>(p_.scale), key_tile(), source_.dk, source_.dk_stride, p_.head_dim,
            aligned_.dk(s));
    if (source_.dv)
      store(dv_, dropout.kept(), value_tile(), source_.dv, source_.dv_stride, p_.head_dim_v,
            aligned_.dv(s));
  }

  // Through the warp's own rows of a tile that is needed no more.
  __device__ void store(const Acc (&sums)[kWidth / 8][4], Acc factor, const Tile<T, kWidth>& tile,
                        void* base, const int64_t (&stride)[3], int64_t width, bool aligned) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp_row_ + lane / 4 + 8 * r;
        const bool some = !Weights::kInExponent || seen_.holds(seen_.begin + row);
        E::store_pair(tile.element(row, n * 8 + lane % 4 * 2),
                      some ? sums[n][2 * r] * factor : Acc(0),
                      some ? sums[n][2 * r + 1] * factor : Acc(0));
      }
    __syncwarp();
    const int count = source_.cu_seqlens ? rows().count : static_cast<int>(source_.seqlen_k);
    const int before = max(0, -(seen_.begin + warp_row_));
    const int begin = seen_.begin + warp_row_ + before;
    store_tile(tile, warp_row_ + before, min(kWarpRows - before, count - begin),
               row_at<T>(base, stride, tile_.b, tile_.head, rows().first + begin), stride[2],
               tile_.chunk * kWidth, static_cast<int>(width), aligned, lane);
  }

  const BackwardProblem& p_;
  const Tiling& t_;
  const Alignment& aligned_;
  KeyTile tile_;
  const KeySource& source_;
  Band band_;
  Rows queries_;
  int warp_row_;
  KeyBlock seen_;  // as far as the sample's length

  double key_sum_[2] = {0, 0};
  Acc dk_[kWidth / 8][4] = {}, dv_[kWidth / 8][4] = {};
};

template <class E>
__device__ void clear_rows_of_no_key(const BackwardProblem& p, const KeySource& source, int b,
                                     int head) {
  using T = typename E::Element;
  if (!source.cu_seqlens) return;
  const Rows rows = key_rows_of(source, b);
  for (const Gap gap :
       {gap_before(rows, b), gap_after(source.cu_seqlens, rows, b, p.batch, source.total_k)}) {
    if (source.dk)
      clear_unowned_rows(static_cast<T*>(source.dk), source.dk_stride, head, p.head_dim, gap);
    if (source.dv)
      clear_unowned_rows(static_cast<T*>(source.dv), source.dv_stride, head, p.head_dim_v, gap);
  }
}

template <class E, int kWidth, bool kPlain>
__global__ void __launch_bounds__(kMostWarps * 32, backward_blocks<E, kWidth, kPlain>())
    attention_bwd_keys_kernel(const __grid_constant__ BackwardProblem p,
                              const __grid_constant__ Tiling tiling,
                              const __grid_constant__ Alignment aligned,
                              const __grid_constant__ KeyGrid grid,
                              const __grid_constant__ TileQueue queue) {
  for (BlockTiles tiles(queue, tiling); tiles.next(grid.tiles);) {
    const KeyTile at = key_tile_at(p, tiling, grid, queue, tiles.tile());
    KeyPass<E, kWidth, kPlain>(p, tiling, aligned, at).run();
    if (at.keys.begin <= 0 && at.chunk == 0)
      clear_rows_of_no_key<E>(p, p.source[at.keys.source], at.b, at.head);
  }
}

}  // namespace crossmodal::cuda
