// How a problem is cut so that one step's operands stay in a core's second-level cache (1 MB on
// current servers).
#pragma once

#include <cstdint>

#include "cpu/kernels/engine.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// 64 query rows against 512 keys: scores take 128 KB, packed K and V of head_dim 64 another 256 KB.
constexpr int64_t kForwardBlockM = 64;
constexpr int64_t kForwardBlockN = 512;
// Backward holds five key-sized and two score-sized arrays at once, hence half the keys.
// The sums over a block's queries are half as long in pairs of bfloat16, and each begins with a
// look at what is there.
template <class E>
constexpr int64_t kBackwardBlockM = 64 * E::kPerWord;
constexpr int64_t kBackwardBlockN = 256;
// Four score-sized arrays and eight key-sized ones.
constexpr int64_t kDoubleBackwardBlockM = 64;
constexpr int64_t kDoubleBackwardBlockN = 256;

// Row length of a score block: whole vectors, and never a multiple of 1 KB, which would put the
// rows of a tile into few cache sets.
template <class E>
constexpr int64_t score_row(int64_t keys) {
  const int64_t row = round_up(keys, E::Vec::kLanes);
  return row * int64_t{sizeof(typename E::Acc)} % 1024 == 0 ? row + E::Vec::kLanes : row;
}

// [0, total) in blocks of nearly equal size, at most `limit` each: 77 rows are 39 + 38, not 64 +
// 13.
struct Blocks {
  int64_t total, count, size;

  Blocks(int64_t total, int64_t limit)
      : total(total), count(ceil_div(total, limit)), size(count ? ceil_div(total, count) : 0) {}
  int64_t begin(int64_t i) const { return min_of(total, i * size); }
  int64_t end(int64_t i) const { return min_of(total, (i + 1) * size); }
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
