// Walks over blocks of rows that pass through shared memory, the copies of one behind the products
// of another.
#pragma once

#include <cuda_runtime.h>

#include "cuda/ptx.h"

namespace crossmodal::cuda {

// For each block that walk.next() gives, until one has count 0: load(block, stage) begins its
// copies, and step(block, stage) finds them done, by all threads. With two stages the copies of the
// next block are under way during a step. All copies have been waited for in the end. Load and step
// are called in one place each: they are long.
template <class Walk, class Load, class Step>
__device__ __forceinline__ void walk_blocks(Walk& walk, int stages, Load load, Step step) {
  const bool ahead = stages == 2;
  auto next = walk.next(), before = next;
  before.count = 0;
  for (int stage = 0; next.count > 0 || before.count > 0; stage ^= ahead) {
    const auto loading = next;
    if (loading.count > 0) load(loading, stage);
    commit_copies();
    const auto block = ahead ? before : loading;
    before = loading;
    if (ahead) {
      wait_for_copies<1>();
    } else {
      before.count = 0;
      wait_for_copies<0>();
    }
    next = walk.next();
    if (block.count == 0) continue;  // the first is on its way
    __syncthreads();
    step(block, ahead ? stage ^ 1 : 0);
    __syncthreads();
  }
}

}  // namespace crossmodal::cuda
