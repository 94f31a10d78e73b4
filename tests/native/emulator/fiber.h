// Cooperative threads: each with a stack of its own, one running at a time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <memory>

namespace emulator {

// Started through ucontext, switched by _setjmp and _longjmp, which unlike swapcontext make no
// system call: a warp instruction costs 64 switches.
class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 << 10;

  // Runs `entry(argument)` until it first pauses or returns.
  void start(void (*entry)(void*), void* argument);
  void resume();
  // Called on the fiber: back to whoever started or resumed it.
  void pause();
  bool finished() const { return finished_; }

 private:
  static void trampoline(unsigned high, unsigned low);

  std::unique_ptr<char[]> stack_;
  ucontext_t context_, owner_context_;
  jmp_buf here_, owner_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool finished_ = true;
};

}  // namespace emulator
