// Block sizes, shared by kernels and by the host code that chooses among them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/attention_problem.h"
#include "cuda/host_device.h"

namespace crossmodal::cuda {

constexpr int kMostWarps = 4;
constexpr int kWarpRows = 16;

// Keys to a block of forward: 64, 32 or 16 by the size of an element, so that a block of keys and
// what is computed from it take the same memory and registers; half of that where masks and wide
// sums, of half precision, need registers too.
CROSSMODAL_HOST_DEVICE constexpr int forward_block_n(size_t element_size, int width, bool plain) {
  const bool is_tight = !plain && element_size == 2 && width > 96;
  return static_cast<int>((is_tight ? 64 : 128) / element_size);
}

// Keys or queries to a block of what backward walks, where scores, weights, gradients and slopes of
// a block are in registers at once: 32, 16 or 8. With 8, rows of 256 doubles fit the smallest
// device, in tiles of 16.
CROSSMODAL_HOST_DEVICE constexpr int backward_block(size_t element_size) {
  return element_size == 2 ? 32 : static_cast<int>(64 / element_size);
}

// Queries to a block of the pass over keys, which has two sums in registers: fewer where those are
// wide.
CROSSMODAL_HOST_DEVICE constexpr int key_pass_block(size_t element_size, int width) {
  return element_size == 2 && width > 64 ? 16 : backward_block(element_size);
}

// Columns that both passes of a backward in one kernel have registers for.
CROSSMODAL_HOST_DEVICE constexpr int widest_short_backward(bool plain) { return plain ? 128 : 64; }

// A word at the end of a block's shared memory, for tiles that come from a queue.
constexpr size_t kSlotBytes = 16;

// Entries of a queue of tiles: each is a thread of the block that sorts them.
constexpr int kMostQueueEntries = 1024;

// Words that a queue takes.
constexpr size_t queue_words(size_t entries) { return 1 + 2 * entries; }

// How a kernel that walks blocks of rows is cut.
struct Tiling {
  int width;  // columns of a panel in shared memory, and of the values that one block sums
  int warps;  // of kWarpRows rows each
  int block_m;
  int stages;           // blocks of rows under way at once: 2 hides their loads behind products
  int panels;           // of query and key
  int panels_v;         // of value and dout, in backward
  int chunks;           // of what is summed
  size_t shared_bytes;  // the slot of a queue included
};

// Numbers of the accumulator's type that one share of a row takes: see RowShare.
CROSSMODAL_HOST_DEVICE inline int row_share_size(const AttentionProblem& p) {
  return static_cast<int>(2 + (p.mass ? 2 * p.num_sources : 0) + p.head_dim_v);
}

struct BackwardTiling {
  Tiling queries, keys, terms;
};

}  // namespace crossmodal::cuda
