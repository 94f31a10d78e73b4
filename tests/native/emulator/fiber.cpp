#include "emulator/fiber.h"

#include <cstdint>

namespace emulator {

void Fiber::trampoline(unsigned high, unsigned low) {
  Fiber* self = reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low);
  self->entry_(self->argument_);
  self->finished_ = true;
  _longjmp(self->owner_, 1);
}

void Fiber::start(void (*entry)(void*), void* argument) {
  if (!stack_) stack_.reset(new char[kStackBytes]);
  entry_ = entry;
  argument_ = argument;
  finished_ = false;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  const uintptr_t self = reinterpret_cast<uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(&trampoline), 2,
              static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  if (_setjmp(owner_) == 0) setcontext(&context_);
}

void Fiber::resume() {
  if (_setjmp(owner_) == 0) _longjmp(here_, 1);
}

void Fiber::pause() {
  if (_setjmp(here_) == 0) _longjmp(owner_, 1);
}

}  // namespace emulator
