#include "cpu/weighted_sum.h"

#include <algorithm>

#include "cpu/kernels.h"

namespace crossmodal::cpu {
namespace {

constexpr int64_t kPanelRows = 512;

double multiply_count(const WeightedSumProblem& w) {
  return static_cast<double>(w.batch) * w.num_heads * w.seqlen_q * w.seqlen_k * w.head_dim;
}

}  // namespace

void weighted_sum_fwd(const WeightedSumProblem& w, const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), w.dtype);
  const int64_t pairs = w.batch * w.num_heads;
  if (pairs == 0 || w.seqlen_q == 0) return;
  const int64_t rows = std::min(w.seqlen_q, kPanelRows), panels = (w.seqlen_q + rows - 1) / rows;
  const size_t scratch_bytes = kernels.weighted_sum_fwd_scratch(w, rows);
  const Runs runs = Runs::for_threads(pairs * panels, threads.count);
  run_tasks(threads, runs.count, 2.0 * multiply_count(w), scratch_bytes,
            [&](int64_t run, char* scratch) {
              kernels.weighted_sum_fwd(w, rows, runs.begin(run), runs.end(run), scratch);
            });
}

void weighted_sum_bwd(const WeightedSumProblem& w, const WeightedSumBackward& g,
                      const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), w.dtype);
  const int64_t pairs = w.batch * w.num_heads;
  const size_t scratch_bytes = kernels.weighted_sum_bwd_scratch(w, g);
  const Runs runs = Runs::for_threads(pairs, threads.count);
  run_tasks(threads, runs.count, 4.0 * multiply_count(w), scratch_bytes,
            [&](int64_t run, char* scratch) {
              kernels.weighted_sum_bwd(w, g, runs.begin(run), runs.end(run), scratch);
            });
}

}  // namespace crossmodal::cpu
