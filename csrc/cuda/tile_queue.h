// Tiles of ragged batches, handed out to blocks as these get free: tiles with most to do first, so
// that the last blocks to end are done soon. The queue is written on the device, by
// order_tiles_kernel, so that a captured graph follows lengths that change.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/ptx.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

// Entries are samples, or samples of each source; all tiles of an entry have as much to do.
struct TileQueue {
  int32_t* memory;  // null: there is no queue, blocks take tiles in turn
  int entries;

  __device__ int32_t* counter() const { return memory; }  // tiles taken so far
  // In the order in which entries are taken: tiles up to and including each, and which it is.
  __device__ int32_t* ends() const { return memory + 1; }
  __device__ int32_t* order() const { return memory + 1 + entries; }
};

// A tile of the queue, by its place among those of its entry.
struct QueuedTile {
  int entry, index;
};

__device__ inline QueuedTile tile_in_queue(const TileQueue& queue, int tile) {
  int low = 0, high = queue.entries - 1;  // the first entry that ends behind the tile
  while (low < high) {
    const int middle = (low + high) / 2;
    if (queue.ends()[middle] > tile) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return {queue.order()[low], tile - (low == 0 ? 0 : queue.ends()[low - 1])};
}

// The tiles that a block works on.
class BlockTiles {
 public:
  __device__ BlockTiles(const TileQueue& queue, const Tiling& tiling)
      : queue_(queue), tiling_(tiling), tile_(blockIdx.x) {}

  // Called by all threads; then `tile` is the next one of `tiles` altogether, or of those in the
  // queue, or there is none.
  __device__ bool next(int64_t tiles) {
    if (!first_) __syncthreads();  // the tile before has been read
    if (queue_.memory) {
      // Where a thread tells the others what it has drawn.
      int* slot = reinterpret_cast<int*>(shared_memory() + tiling_.shared_bytes - kSlotBytes);
      if (threadIdx.x == 0) *slot = atomicAdd(queue_.counter(), 1);
      __syncthreads();
      tile_ = *slot;
      tiles = queue_.ends()[queue_.entries - 1];
    } else if (!first_) {
      tile_ += gridDim.x;
    }
    first_ = false;
    return tile_ < tiles;
  }

  __device__ int64_t tile() const { return tile_; }

 private:
  const TileQueue& queue_;
  const Tiling& tiling_;
  int64_t tile_;
  bool first_ = true;
};

}  // namespace crossmodal::cuda
