#include "cpu/attention.h"

#include <algorithm>
#include <numeric>

#include "cpu/kernels.h"

namespace crossmodal::cpu {
namespace {

// Packing a chunk of keys is shared by the queries of a panel; more queries than this add little
// and cost cache.
constexpr int64_t kPanelRows = 512;
// Fewer rows than a block would leave register tiles half empty.
constexpr int64_t kSmallestPanel = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t panel_rows(const AttentionProblem& p, int64_t pairs, int threads) {
  int64_t rows = std::min(p.seqlen_q, kPanelRows);
  if (threads > 1 && pairs > 0) {
    const int64_t panels = ceil_div(kTasksPerThread * threads, pairs);
    rows = std::min(rows, std::max(kSmallestPanel, ceil_div(p.seqlen_q, panels)));
  }
  return std::max<int64_t>(rows, 1);
}

double score_count(const AttentionProblem& p) {
  return static_cast<double>(p.batch) * p.num_heads * p.seqlen_q * p.total_keys;
}

// Neighbouring heads that one task has to run, since they add to the gradient of one key head: a
// multiple of every source's group that divides num_heads.
int64_t heads_together(const AttentionProblem& p) {
  int64_t heads = 1;
  for (int s = 0; s < p.num_sources && p.num_heads > 0; ++s)
    heads = std::lcm(heads, p.num_heads / p.sources[s].num_heads_k);
  return heads;
}

// Sums over partial accumulators, each element in the order of the partials.
template <class Acc>
void sum_partials(const ScoreTerm& term, int64_t partials) {
  Acc* first = static_cast<Acc*>(term.grad);
  for (int64_t k = 1; k < partials; ++k) {
    const Acc* other = first + k * term.grad_size;
    for (int64_t i = 0; i < term.grad_size; ++i) first[i] += other[i];
  }
}

}  // namespace

void attention_fwd(const AttentionProblem& p, const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), p.dtype);
  const int64_t pairs = p.batch * p.num_heads;
  if (pairs == 0 || p.seqlen_q == 0) return;
  const int64_t rows = panel_rows(p, pairs, threads.count);
  const int64_t panels = ceil_div(p.seqlen_q, rows);
  const double operations = 2.0 * score_count(p) * (p.head_dim + p.head_dim_v);
  const Runs runs = Runs::for_threads(pairs * panels, threads.count);
  run_tasks(threads, runs.count, operations, kernels.attention_fwd_scratch(p, rows),
            [&](int64_t run, char* scratch) {
              kernels.attention_fwd(p, rows, runs.begin(run), runs.end(run), scratch);
            });
}

BackwardSplit split_backward(const AttentionProblem& p, int threads) {
  const int64_t pairs = p.batch * p.num_heads;
  bool over_batch = false, over_heads = false;
  for (int s = 0; s < p.num_sources; ++s)
    for (int t = 0; t < p.sources[s].num_terms; ++t) {
      const ScoreTerm& term = p.sources[s].terms[t];
      if (term.grad == nullptr) continue;
      over_batch |= term.grad_stride[0] == 0 && p.batch > 1;
      over_heads |= term.grad_stride[1] == 0 && p.num_heads > 1;
    }
  const int64_t units = pairs / heads_together(p);
  if (!over_batch && !over_heads) return {Runs::for_threads(units, threads).count, 1};
  // Heads of a sample share an accumulator and nobody else does: a sample is a group, if there are
  // enough of them.
  if (!over_batch && p.batch >= threads) return {p.batch, 1};
  const int64_t partials = std::max<int64_t>(1, std::min<int64_t>(threads, units));
  return {partials, partials};
}

namespace {

// Runs run(partial, begin, end, scratch) for the pairs (batch, head) of each group, then adds up
// the partial gradients of terms.
template <class Run>
void run_groups(const AttentionProblem& p, const BackwardSplit& split, const Threads& threads,
                double operations, size_t scratch_bytes, const Run& run) {
  run_tasks(threads, split.groups, operations, scratch_bytes, [&](int64_t group, char* scratch) {
    const int64_t together = heads_together(p);
    const Runs runs(p.batch * p.num_heads / together, split.groups);
    run(split.partials > 1 ? group : 0, runs.begin(group) * together, runs.end(group) * together,
        scratch);
  });
  for (int s = 0; s < p.num_sources; ++s)
    for (int t = 0; t < p.sources[s].num_terms; ++t) {
      const ScoreTerm& term = p.sources[s].terms[t];
      if (term.grad == nullptr) continue;
      if (term.grad_is_double) {
        sum_partials<double>(term, split.partials);
      } else {
        sum_partials<float>(term, split.partials);
      }
    }
}

}  // namespace

void attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                   const BackwardSplit& split, const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), p.dtype);
  if (p.batch * p.num_heads == 0) return;
  const double operations = 5.0 * score_count(p) * (p.head_dim + p.head_dim_v);
  run_groups(p, split, threads, operations, kernels.attention_bwd_scratch(p, g),
             [&](int64_t partial, int64_t begin, int64_t end, char* scratch) {
               kernels.attention_bwd(p, g, partial, begin, end, scratch);
             });
}

void attention_double_bwd(const AttentionProblem& p, const AttentionDoubleBackward& g,
                          const BackwardSplit& split, const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), p.dtype);
  if (p.batch * p.num_heads == 0) return;
  const double operations = 12.0 * score_count(p) * (p.head_dim + p.head_dim_v);
  run_groups(p, split, threads, operations, kernels.attention_double_bwd_scratch(p, g),
             [&](int64_t partial, int64_t begin, int64_t end, char* scratch) {
               kernels.attention_double_bwd(p, g, partial, begin, end, scratch);
             });
}

void associate(const AttentionProblem& p, const AssociateProblem& a, const Threads& threads) {
  const DTypeKernels& kernels = kernels_for(active_isa(), p.dtype);
  const int64_t heads = a.output == AssociateOutput::kHeadMean ? 1 : p.num_heads;
  const int64_t pairs = p.batch * heads;
  if (pairs == 0 || p.seqlen_q == 0 || p.num_heads == 0) return;
  // The total over queries is one sum.
  const int64_t rows =
      a.output == AssociateOutput::kKeyTotal ? p.seqlen_q : panel_rows(p, pairs, threads.count);
  const int64_t panels = ceil_div(p.seqlen_q, rows);
  const double operations = 2.0 * score_count(p) * p.head_dim;
  run_tasks(threads, pairs * panels, operations, kernels.associate_scratch(p, a),
            [&](int64_t task, char* scratch) {
              const int64_t pair = task / panels, begin = task % panels * rows;
              kernels.associate(p, a, pair / heads, pair % heads, begin,
                                std::min(p.seqlen_q, begin + rows), scratch);
            });
}

}  // namespace crossmodal::cpu
