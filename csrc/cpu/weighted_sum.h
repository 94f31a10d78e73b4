// The weighted sum on the CPU: cuts a problem into tasks and runs the active instruction set's
// kernels on them.
#pragma once

#include "core/weighted_sum_problem.h"
#include "cpu/parallel.h"

namespace crossmodal::cpu {

void weighted_sum_fwd(const WeightedSumProblem& problem, const Threads& threads);

void weighted_sum_bwd(const WeightedSumProblem& problem, const WeightedSumBackward& gradients,
                      const Threads& threads);

}  // namespace crossmodal::cpu
