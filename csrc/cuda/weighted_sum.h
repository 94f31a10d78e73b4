#pragma once

#include "core/weighted_sum_problem.h"

namespace crossmodal::cuda {

// Enqueues on `stream` (a cudaStream_t) and returns at once. Throws std::runtime_error when the
// launch is refused.
void launch_weighted_sum(const WeightedSumProblem& problem, void* stream);

}  // namespace crossmodal::cuda
