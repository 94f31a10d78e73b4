// How kernels for few queries are cut.
#pragma once

#include <cstddef>

#include "cuda/host_device.h"

namespace crossmodal::cuda {

constexpr int kFewWarps = 4;  // to a block

// Queries that a block holds at a time, 1 or this: their features and sums take registers.
constexpr int few_rows(size_t element_size) { return element_size == 8 ? 1 : 4; }

// Keys of a group of lanes whose rows are under way at once.
constexpr int few_unroll(int chunks) { return chunks == 1 ? 4 : chunks == 2 ? 2 : 1; }

// In backward more queries leave fewer registers.
constexpr int few_backward_unroll(int chunks, int rows) {
  return rows == 1 ? few_unroll(chunks) : chunks == 1 ? 2 : 1;
}

// Blocks to a multiprocessor that registers have to leave room for.
constexpr int few_blocks(int chunks, int rows) {
  return rows > 1 || chunks > 2 ? 2 : chunks == 2 ? 3 : 4;
}

// The same where a warp has a query to itself, which takes fewer: see one_query.h.
constexpr int kOneBlocks = 4;
constexpr int kOneBackwardUnroll = 2;
constexpr int kFewestLanes = 8;  // that it is compiled for

struct FewTiling {
  int chunks;     // of 16 bytes that a lane holds of a row
  int log_lanes;  // lanes to a row: a power of 2
  int heads;      // of queries that share a head of keys, in every source
  int rows;       // their queries together
  int rows_at_once;
  int warps;  // that share the keys of a row: all of a block, or one where each has its own
  size_t shared_bytes;

  CROSSMODAL_HOST_DEVICE int lanes() const { return 1 << log_lanes; }
  CROSSMODAL_HOST_DEVICE int tiles() const { return (rows + rows_at_once - 1) / rows_at_once; }
};

}  // namespace crossmodal::cuda
