// Work for a fixed number of workers, handed out piece by piece. Who runs a piece never changes its
// result, so a slow core costs time, not repeatability.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace crossmodal::cpu {

// The caller's threads: runs body(worker) for each worker in [0, workers), possibly at the same
// time.
struct Threads {
  int count;
  void (*run)(int64_t workers, const std::function<void(int64_t)>& body);
};

// Tasks per thread: enough that a thread which lost its core for a while does not hold up the rest.
constexpr int64_t kTasksPerThread = 4;

// [0, items) in runs of nearly equal length, so many that threads can share them and so few that
// neighbours mostly run one after the other: each can bring the memory of the next into the cache.
struct Runs {
  int64_t items, count;

  Runs(int64_t items, int64_t count) : items(items), count(count < items ? count : items) {}
  static Runs for_threads(int64_t items, int threads) {
    return Runs(items, threads > 1 ? kTasksPerThread * threads : 1);
  }
  int64_t begin(int64_t i) const { return items * i / count; }
  int64_t end(int64_t i) const { return items * (i + 1) / count; }
};

// Calls task(index, scratch) for each index in [0, tasks), with `scratch_bytes` of 64-byte aligned
// memory that belongs to the calling thread. `operations` estimates the whole work: below what
// waking a thread costs, all runs here. The first exception of a task is thrown again after all
// have ended.
void run_tasks(const Threads& threads, int64_t tasks, double operations, size_t scratch_bytes,
               const std::function<void(int64_t, char*)>& task);

}  // namespace crossmodal::cpu
