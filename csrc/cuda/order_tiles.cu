#include "cuda/order_tiles.h"

#include "cuda/key_tiles.h"
#include "cuda/launch.h"
#include "cuda/query_tiles.h"

namespace crossmodal::cuda {
namespace {

// How many tiles an entry has, and how much each has to do.
struct EntryWork {
  int tiles, work;
};

__device__ EntryWork work_of_queries(const Problem& p, const Tiling& tiling, int b) {
  int keys = 0;
  for (int s = 0; s < p.num_sources; ++s) keys += key_rows_of(p.source[s], b).count;
  const int heads = static_cast<int>(p.num_heads);
  return {query_tiles_of(p, tiling, b) * heads * tiling.chunks,
          query_rows(p, b).count > 0 ? keys : 0};
}

__device__ EntryWork work_of_keys(const Problem& p, const Tiling& tiling, int entry) {
  const int batch = static_cast<int>(p.batch), s = entry / batch, b = entry % batch;
  const KeySource& source = p.source[s];
  const int tiles = key_tiles_of(p, source, key_offset(p, s), b, tiling.block_m);
  return {tiles * static_cast<int>(source.num_heads_k) * tiling.chunks,
          key_rows_of(source, b).count > 0 ? query_rows(p, b).count * p.group[s] : 0};
}

// An entry to a thread of one block: its place is the number of entries that come first, where its
// tiles end is the sum of theirs.
__global__ void __launch_bounds__(kMostQueueEntries)
    order_tiles_kernel(const __grid_constant__ Problem p, const __grid_constant__ Tiling tiling,
                       const __grid_constant__ TileQueue queue, bool of_keys) {
  const int entry = static_cast<int>(threadIdx.x);
  const bool exists = entry < queue.entries;
  int* work = reinterpret_cast<int*>(shared_memory());
  int* ends = work + queue.entries;
  EntryWork own = {0, 0};
  if (exists) {
    own = of_keys ? work_of_keys(p, tiling, entry) : work_of_queries(p, tiling, entry);
    work[entry] = own.work;
  }
  __syncthreads();
  int place = 0;
  if (exists) {
    for (int other = 0; other < queue.entries; ++other)
      place += work[other] > own.work || (work[other] == own.work && other < entry);
    queue.order()[place] = entry;
    ends[place] = own.tiles;
  }
  __syncthreads();
  for (int step = 1; step < queue.entries; step *= 2) {
    const int before = exists && entry >= step ? ends[entry - step] : 0;
    __syncthreads();
    if (exists) ends[entry] += before;
    __syncthreads();
  }
  if (exists) queue.ends()[entry] = ends[entry];
  if (entry == 0) *queue.counter() = 0;
}

void order(const Problem& p, const Tiling& tiling, const TileQueue& queue, bool of_keys,
           void* stream) {
  const int threads = static_cast<int>(ceil_div(queue.entries, kWarp)) * kWarp;
  launch("order_tiles_kernel", order_tiles_kernel, 1, threads, 2 * queue.entries * sizeof(int),
         stream, p, tiling, queue, of_keys);
}

}  // namespace

void order_query_tiles(const Problem& p, const Tiling& tiling, const TileQueue& queue,
                       void* stream) {
  order(p, tiling, queue, false, stream);
}

void order_key_tiles(const Problem& p, const Tiling& tiling, const TileQueue& queue, void* stream) {
  order(p, tiling, queue, true, stream);
}

}  // namespace crossmodal::cuda
