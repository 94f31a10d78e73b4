// Tiles of queries: of all samples and heads in turn, or from a queue.
#pragma once

#include <algorithm>

#include "cuda/divisor.h"
#include "cuda/launch.h"
#include "cuda/sample.h"
#include "cuda/tile_queue.h"

namespace crossmodal::cuda {

struct QueryTile {
  int b, h, m_begin;
  int chunk;  // of the columns that are summed
};

// Tiles of one head and chunk. A packed sample without queries has one: rows beside it are its own.
__device__ inline int query_tiles_of(const Problem& p, const Tiling& tiling, int64_t b) {
  const int rows = p.cu_seqlens_q ? query_rows(p, b).count : static_cast<int>(p.seqlen_q);
  return max(1, static_cast<int>(ceil_div(rows, tiling.block_m)));
}

__host__ __device__ inline int64_t all_query_tiles(const AttentionProblem& p,
                                                   const Tiling& tiling) {
  return p.batch * p.num_heads * ceil_div(p.seqlen_q, tiling.block_m) * tiling.chunks;
}

// What tells the tiles of a grid apart.
struct QueryGrid {
  int64_t tiles;  // of one share of the keys
  Divisor chunks, tiles_m, heads;

  QueryGrid(const AttentionProblem& p, const Tiling& tiling)
      : tiles(all_query_tiles(p, tiling)),
        chunks(tiling.chunks),
        tiles_m(std::max<int64_t>(1, ceil_div(p.seqlen_q, tiling.block_m))),
        heads(std::max<int64_t>(1, p.num_heads)) {}
};

// Neighbouring tiles share keys and values, which then come out of the second-level cache.
__device__ inline QueryTile query_tile_at(const Problem& p, const Tiling& tiling,
                                          const QueryGrid& grid, const TileQueue& queue,
                                          int64_t tile) {
  if (queue.memory) {
    const QueuedTile at = tile_in_queue(queue, static_cast<int>(tile));
    const int tiles_m = query_tiles_of(p, tiling, at.entry), rest = at.index / tiling.chunks;
    return {at.entry, rest / tiles_m, rest % tiles_m * tiling.block_m, at.index % tiling.chunks};
  }
  if (tile <= INT32_MAX) {
    const uint32_t t = static_cast<uint32_t>(tile), rest = grid.chunks.quotient(t);
    const uint32_t pair = grid.tiles_m.quotient(rest), b = grid.heads.quotient(pair);
    return {static_cast<int>(b), static_cast<int>(grid.heads.remainder(pair, b)),
            static_cast<int>(grid.tiles_m.remainder(rest, pair)) * tiling.block_m,
            static_cast<int>(grid.chunks.remainder(t, rest))};
  }
  const int64_t tiles_m = ceil_div(p.seqlen_q, tiling.block_m), rest = tile / tiling.chunks;
  const int64_t pair = rest / tiles_m;
  return {static_cast<int>(pair / p.num_heads), static_cast<int>(pair % p.num_heads),
          static_cast<int>(rest % tiles_m) * tiling.block_m,
          static_cast<int>(tile % tiling.chunks)};
}

}  // namespace crossmodal::cuda
