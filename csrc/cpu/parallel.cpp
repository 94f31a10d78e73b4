#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>

namespace crossmodal::cpu {
namespace {

// Waking another thread takes about 5 us with cold caches, in which a core does some 5e5
// operations.
constexpr double kOperationsPerWorker = 5e5;

// Grows, never shrinks: fresh pages for every call would cost more than a small problem takes.
struct ThreadScratch {
  char* memory = nullptr;
  size_t size = 0;

  char* get(size_t bytes) {
    if (bytes > size) {
      std::free(memory);
      size = 0;
      const size_t rounded = (bytes + bytes / 4 + 4095) & ~size_t{4095};
      memory = static_cast<char*>(std::aligned_alloc(64, rounded));
      if (memory == nullptr) throw std::bad_alloc();
      size = rounded;
    }
    return memory;
  }
  ~ThreadScratch() { std::free(memory); }
};

thread_local ThreadScratch thread_scratch;

}  // namespace

void run_tasks(const Threads& threads, int64_t tasks, double operations, size_t scratch_bytes,
               const std::function<void(int64_t, char*)>& task) {
  if (tasks <= 0) return;
  const int64_t worth = 1 + static_cast<int64_t>(std::min(operations / kOperationsPerWorker, 1e6));
  const int64_t workers = std::min<int64_t>({threads.count, tasks, worth});
  if (workers <= 1) {
    char* scratch = thread_scratch.get(std::max<size_t>(scratch_bytes, 64));
    for (int64_t i = 0; i < tasks; ++i) task(i, scratch);
    return;
  }

  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
  threads.run(workers, [&](int64_t) {
    try {
      char* scratch = thread_scratch.get(std::max<size_t>(scratch_bytes, 64));
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i, scratch);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_lock);
      if (!error) error = std::current_exception();
      next.store(tasks, std::memory_order_relaxed);
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace crossmodal::cpu
