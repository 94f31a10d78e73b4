// One block of memory cut into aligned arrays. Laid out twice by the same code: without memory to
// learn the size, with memory to use it, so that the two can never disagree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}

  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(memory_ + used_);
    // A cache line between arrays: a vector store at the end of one never touches the next.
    used_ += (static_cast<size_t>(n) * sizeof(T) + 127) & ~size_t{63};
    return p;
  }
  size_t used() const { return used_; }
  bool has_memory() const { return memory_ != nullptr; }

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
