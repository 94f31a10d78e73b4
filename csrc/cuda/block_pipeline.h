// Walks over blocks of rows that pass through shared memory, the copies of one behind the products
// of another.
#pragma once

#include <cuda_runtime.h>

#include "cuda/ptx.h"

namespace crossmodal::cuda {

// For each block that walk.next() gives, until one has count 0, as all after it have: load(block,
// stage) begins its copies, and step(block, stage) finds them done, by all threads. With two stages
// the copies of the next block are under way during a step. All copies have been waited for in the
// end. Load and step are called in one place each: they are long.
template <class Walk, class Load, class Step>
__device__ __forceinline__ void walk_blocks(Walk& walk, int stages, Load load, Step step) {
  const bool ahead = stages == 2;
  decltype(walk.next()) before{};
  for (int stage = 0;; stage ^= ahead) {
    const auto loading = walk.next();
    if (loading.count > 0) load(loading, stage);
    commit_copies();
    if (ahead) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    const auto block = ahead ? before : loading;
    if (block.count > 0) {
      __syncthreads();
      step(block, ahead ? stage ^ 1 : 0);
      __syncthreads();
    }
    if (loading.count == 0) return;
    before = loading;
  }
}

}  // namespace crossmodal::cuda
