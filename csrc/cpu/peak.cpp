// The peaks of this machine, one thread, with the active instruction set: crossmodal_measure_*().
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/introspection.h"
#include "cpu/kernels.h"

namespace crossmodal::cpu {
namespace {

// The best of many tries, each shorter than the slices of time that a scheduler deals out: another
// process can only take away.
constexpr int kTries = 40;
constexpr double kSecondsPerTry = 1e-3;

// work(n) does n units; returns how many a second.
template <class Work>
double best_rate(const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [&](int64_t units) {
    const auto start = Clock::now();
    work(units);
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  int64_t units = 1;
  double best = 0;
  for (int tries = 0; tries < kTries;) {
    const double taken = seconds(units);
    if (taken < kSecondsPerTry) {
      units *= 2;
      continue;
    }
    best = std::max(best, units / taken);
    ++tries;
  }
  return best;
}

}  // namespace
}  // namespace crossmodal::cpu

using namespace crossmodal::cpu;

double crossmodal_measure_peak(int dtype) {
  const DTypeKernels& kernels = kernels_for(active_isa(), static_cast<crossmodal::DType>(dtype));
  const double operations_per_round = kernels.multiply_in_registers(1);
  return 1e-9 * operations_per_round *
         best_rate([&](int64_t rounds) { kernels.multiply_in_registers(rounds); });
}

double crossmodal_measure_bandwidth(int64_t bytes) {
  constexpr int64_t kPage = 4096;
  bytes = (bytes + kPage - 1) / kPage * kPage;
  // Huge pages, where they can be had: the walk through page tables is not what is asked for.
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t alignment = bytes < kHugePage ? kPage : kHugePage;
  const int64_t size = (bytes + alignment - 1) / alignment * alignment;
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(alignment, size),
                                                      std::free);
  if (memory == nullptr) return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) madvise(memory.get(), size, MADV_HUGEPAGE);
#endif
  // Pages that were never written are all the same one, of zeros.
  std::memset(memory.get(), 1, size);
  const auto read = read_memory_for(active_isa());
  const char* const data = static_cast<const char*>(memory.get());
  return 1e-9 * bytes * best_rate([&](int64_t passes) { read(data, bytes, passes); });
}
