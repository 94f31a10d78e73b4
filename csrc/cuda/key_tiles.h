// Tiles of keys, each of which owns its rows of dK and dV: of all sources, samples and heads in
// turn, or from a queue.
#pragma once

#include "cuda/divisor.h"
#include "cuda/launch.h"
#include "cuda/sample.h"
#include "cuda/tile_queue.h"
#include "cuda/visible_keys.h"

namespace crossmodal::cuda {

// Which keys a block owns.
struct KeyTile {
  int b, head;    // head of the keys
  int chunk;      // of columns
  KeyBlock keys;  // begin and count whatever the sample's length
};

// Keys of a source are cut from a multiple of 4 along the concatenation on: see KeyWalk.
__device__ __host__ inline int keys_before_source(const AttentionProblem& p, int offset) {
  return p.dropout_p > 0 ? offset % 4 : 0;
}

// Whether this pass has anything to write for the source.
__device__ __host__ inline bool has_key_gradients(const KeySource& source) {
  bool wanted = source.dk != nullptr || source.dv != nullptr;
  for (int t = 0; t < source.num_terms; ++t)
    wanted |= source.terms[t].grad != nullptr && source.terms[t].grad_stride[2] == 0;
  return wanted;
}

__device__ __host__ inline int64_t key_tiles(const AttentionProblem& p, const KeySource& source,
                                             int offset, int block_m) {
  if (!has_key_gradients(source)) return 0;
  return ceil_div(source.seqlen_k + keys_before_source(p, offset), block_m);
}

// Key tiles of one head and chunk of sample b: where keys are packed, as many as it has. One
// without keys has one: rows beside it are its own.
__device__ inline int key_tiles_of(const Problem& p, const KeySource& source, int offset, int64_t b,
                                   int block_m) {
  if (!source.cu_seqlens || !has_key_gradients(source))
    return static_cast<int>(key_tiles(p, source, offset, block_m));
  const int keys = key_rows_of(source, b).count + keys_before_source(p, offset);
  return max(1, static_cast<int>(ceil_div(keys, block_m)));
}

// Entries of the queue are samples of the first source, then of the next one.
__device__ inline KeyTile key_tile_in_queue(const Problem& p, const Tiling& tiling,
                                            const TileQueue& queue, int tile) {
  const QueuedTile at = tile_in_queue(queue, tile);
  const int batch = static_cast<int>(p.batch), s = at.entry / batch, b = at.entry % batch;
  const int offset = key_offset(p, s), rest = at.index / tiling.chunks;
  const int blocks = key_tiles_of(p, p.source[s], offset, b, tiling.block_m);
  const int begin = rest % blocks * tiling.block_m - keys_before_source(p, offset);
  return {b, rest / blocks, at.index % tiling.chunks, {s, begin, tiling.block_m}};
}

// What tells the tiles of a grid apart.
struct KeyGrid {
  int64_t tiles = 0;
  Divisor chunks;
  Divisor blocks[kMostSources] = {};  // of keys, of one head and chunk

  KeyGrid(const AttentionProblem& p, const Tiling& tiling) : chunks(tiling.chunks) {
    int offset = 0;
    for (int s = 0; s < p.num_sources; ++s) {
      const int64_t of_head = key_tiles(p, p.sources[s], offset, tiling.block_m);
      blocks[s] = Divisor(of_head);
      tiles += of_head * p.sources[s].num_heads_k * p.batch * tiling.chunks;
      offset += static_cast<int>(p.sources[s].seqlen_k);
    }
  }
};

__device__ inline KeyTile key_tile_at(const Problem& p, const Tiling& tiling, const KeyGrid& grid,
                                      const TileQueue& queue, int64_t tile) {
  if (queue.memory) return key_tile_in_queue(p, tiling, queue, static_cast<int>(tile));
  KeyTile found{};
  const bool is_small = tile <= INT32_MAX;
  int64_t rest =
      is_small ? grid.chunks.quotient(static_cast<uint32_t>(tile)) : tile / tiling.chunks;
  found.chunk = static_cast<int>(tile - rest * tiling.chunks);
  int s = 0;
  for (; s + 1 < p.num_sources; ++s) {
    const int64_t tiles = grid.blocks[s].value() * p.source[s].num_heads_k * p.batch;
    if (rest < tiles) break;
    rest -= tiles;
  }
  const Divisor& blocks = grid.blocks[s];
  int block;
  if (is_small) {
    const uint32_t t = static_cast<uint32_t>(rest), pair = blocks.quotient(t);
    const uint32_t heads = static_cast<uint32_t>(p.source[s].num_heads_k);
    found.b = static_cast<int>(pair / heads);
    found.head = static_cast<int>(pair % heads);
    block = static_cast<int>(blocks.remainder(t, pair));
  } else {
    const int64_t heads = p.source[s].num_heads_k, pair = rest / blocks.value();
    found.b = static_cast<int>(pair / heads);
    found.head = static_cast<int>(pair % heads);
    block = static_cast<int>(rest % blocks.value());
  }
  const int before = p.dropout_p > 0 ? keys_before_source(p, key_offset(p, s)) : 0;
  found.keys = {s, block * tiling.block_m - before, tiling.block_m};
  return found;
}

}  // namespace crossmodal::cuda
