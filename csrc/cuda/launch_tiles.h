// Launches of kernels that walk BlockTiles.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile_queue.h"

namespace crossmodal::cuda {

// A block to each tile; where tiles come from a queue, as many blocks as the device holds at once.
template <class... Parameters, class... Arguments>
void launch_tiles(const char* name, void (*kernel)(Parameters...), int64_t tiles,
                  const Tiling& tiling, const TileQueue& queue, void* stream,
                  const Arguments&... arguments) {
  const int threads = tiling.warps * kWarp;
  if (queue.memory) {
    allow_shared_bytes(name, kernel, tiling.shared_bytes);
    tiles = std::min(tiles, blocks_at_once(name, kernel, threads, tiling.shared_bytes));
  }
  launch(name, kernel, tiles, threads, tiling.shared_bytes, stream, arguments...);
}

}  // namespace crossmodal::cuda
