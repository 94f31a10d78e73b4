#pragma once

#include "core/weighted_sum_problem.h"

namespace crossmodal::cuda {

// Enqueue on `stream` (a cudaStream_t) and return at once. Throw std::runtime_error when a launch
// is refused.
void weighted_sum_fwd(const WeightedSumProblem& problem, void* stream);
void weighted_sum_bwd(const WeightedSumProblem& problem, const WeightedSumBackward& backward,
                      void* stream);

}  // namespace crossmodal::cuda
