// The kernels of one instruction set as plain function pointers. Every csrc/cpu/isa/<name>.cpp
// fills one table; nothing else leaves those files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/attention_problem.h"
#include "core/double_backward.h"
#include "core/weighted_sum_problem.h"
#include "cpu/isa.h"

namespace crossmodal::cpu {

// Kernels of one dtype. `*_scratch` tells how many bytes (64-byte aligned) a worker must bring.
struct DTypeKernels {
  size_t (*attention_fwd_scratch)(const AttentionProblem&, int64_t panel_rows);
  // Panels [begin, end) of panel_rows queries, counted along (batch, head, panel).
  void (*attention_fwd)(const AttentionProblem&, int64_t panel_rows, int64_t begin, int64_t end,
                        char* scratch);

  size_t (*attention_bwd_scratch)(const AttentionProblem&, const AttentionBackward&);
  // Pairs (batch, head) [begin, end), in order; bias gradients go to accumulator `partial`. Heads
  // that share a key head have to be in one call.
  void (*attention_bwd)(const AttentionProblem&, const AttentionBackward&, int64_t partial,
                        int64_t begin, int64_t end, char* scratch);

  // The same cut.
  size_t (*attention_double_bwd_scratch)(const AttentionProblem&, const AttentionDoubleBackward&);
  void (*attention_double_bwd)(const AttentionProblem&, const AttentionDoubleBackward&,
                               int64_t partial, int64_t begin, int64_t end, char* scratch);

  size_t (*associate_scratch)(const AttentionProblem&, const AssociateProblem&);
  // Queries [q_begin, q_end) of one (b, h); for head means h is 0 and all heads are taken, for key
  // totals all queries.
  void (*associate)(const AttentionProblem&, const AssociateProblem&, int64_t b, int64_t h,
                    int64_t q_begin, int64_t q_end, char* scratch);

  size_t (*weighted_sum_fwd_scratch)(const WeightedSumProblem&, int64_t panel_rows);
  // Panels [begin, end), as attention_fwd.
  void (*weighted_sum_fwd)(const WeightedSumProblem&, int64_t panel_rows, int64_t begin,
                           int64_t end, char* scratch);

  size_t (*weighted_sum_bwd_scratch)(const WeightedSumProblem&, const WeightedSumBackward&);
  // Pairs (batch, head) [begin, end).
  void (*weighted_sum_bwd)(const WeightedSumProblem&, const WeightedSumBackward&, int64_t begin,
                           int64_t end, char* scratch);

  // Multiply-adds and nothing else, for the machine's peak; returns the number of operations.
  double (*multiply_in_registers)(int64_t rounds);

  const char* multiply;  // how products are formed, for the plan that people read
  int lanes;             // elements of a vector of accumulators
  int tile_rows;         // widest register tile: rows x vectors
  int tile_vectors;
  int block_m;  // queries and keys of one forward step
  int block_n;
};

// Reads `bytes` bytes `passes` times over.
using ReadMemory = void (*)(const char* data, int64_t bytes, int64_t passes);

struct KernelTable {
  DTypeKernels float32, bfloat16, float16, float64;
  ReadMemory read_memory;
};

const DTypeKernels& kernels_for(Isa isa, DType dtype);
ReadMemory read_memory_for(Isa isa);

}  // namespace crossmodal::cpu
