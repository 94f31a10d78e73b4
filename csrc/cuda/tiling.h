// Block sizes, shared by kernels and by the host code that chooses among them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace crossmodal::cuda {

constexpr int kMostWarps = 4;
constexpr int kWarpRows = 16;

// Keys to a block of forward: 64, 32 or 16 by the size of an element, so that a block of keys and
// what is computed from it take the same memory and registers.
__host__ __device__ constexpr int forward_block_n(size_t element_size) {
  return static_cast<int>(128 / element_size);
}

// Keys or queries to a block of what backward walks, where scores, weights, gradients and slopes of
// a block are in registers at once: 32 or 16.
__host__ __device__ constexpr int backward_block(size_t element_size) {
  return element_size == 2 ? 32 : 16;
}

// Queries to a block of the pass over keys, which has two sums in registers: fewer where those are
// wide.
__host__ __device__ constexpr int key_pass_block(size_t element_size, int width) {
  return element_size * width > 128 ? 16 : backward_block(element_size);
}

// How a kernel that walks blocks of rows is cut.
struct Tiling {
  int width;  // columns of a panel in shared memory, and of the values that one block sums
  int warps;  // of kWarpRows rows each
  int block_m;
  int stages;    // blocks of rows under way at once: 2 hides their loads behind products
  int panels;    // of query and key
  int panels_v;  // of value and dout, in backward
  int chunks;    // of what is summed
  size_t shared_bytes;
};

struct BackwardTiling {
  Tiling queries, keys, terms;
};

}  // namespace crossmodal::cuda
