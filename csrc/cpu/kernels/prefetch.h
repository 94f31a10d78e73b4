// Memory that will be read soon, brought into the cache a line at a time while the micro-kernel
// multiplies: the products of one head hide the memory of the next.
#pragma once

#include <cstdint>

#include "cpu/kernels/engine.h"
#include "cpu/kernels/sample.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

class Prefetcher {
 public:
  // Lines `step` bytes apart.
  struct Lines {
    const char* at;
    int64_t step, count;
  };

  void clear() { count_ = next_ = 0; }

  // Rows of `bytes` each, `stride` bytes apart. What does not fit the queue is left to the caches.
  void add_rows(const void* base, int64_t stride, int64_t rows, int64_t bytes) {
    if (rows <= 0 || bytes <= 0) return;
    const char* at = static_cast<const char*>(base);
    if (stride == bytes) {
      add({at, kLine, ceil_div(rows * bytes, kLine)});
      return;
    }
    for (int64_t x = 0; x < bytes; x += kLine) add({at + x, stride, rows});
  }

  // Rows of one (batch, head) of a tensor; a null one has none.
  template <class T>
  void add_head(const void* base, const int64_t* stride, int64_t b, int64_t h, Rows rows,
                int64_t width) {
    if (base)
      add_rows(row_at<const T>(base, stride, b, h, rows.first), stride[2] * int64_t{sizeof(T)},
               rows.count, width * int64_t{sizeof(T)});
  }

  // At most `most` lines that lie in a row, taken off the queue.
  Lines take(int64_t most) {
    if (next_ == count_) return {nullptr, 0, 0};
    Lines& lines = queue_[next_];
    const Lines taken = {lines.at, lines.step, min_of(most, lines.count)};
    lines.at += taken.count * lines.step;
    lines.count -= taken.count;
    if (lines.count == 0) ++next_;
    return taken;
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kMost = 64;

  void add(Lines lines) {
    if (count_ < kMost) queue_[count_++] = lines;
  }

  Lines queue_[kMost];
  int count_ = 0, next_ = 0;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
