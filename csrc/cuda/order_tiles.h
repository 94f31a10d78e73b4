// Writes the queues of tile_queue.h.
#pragma once

#include "core/attention_problem.h"
#include "cuda/problem.h"
#include "cuda/tile_queue.h"

namespace crossmodal::cuda {

// Tiles of queries, whose work is their sample's keys; or of keys, whose work is its queries.
void order_query_tiles(const Problem& p, const Tiling& tiling, const TileQueue& queue,
                       void* stream);
void order_key_tiles(const Problem& p, const Tiling& tiling, const TileQueue& queue, void* stream);

}  // namespace crossmodal::cuda
