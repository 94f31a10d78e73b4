// What the emulated kernels offer to the operators: a table, so that one build of the operators can
// run any build of the kernels, mutilated ones included.
#pragma once

#include "cuda/attention.h"
#include "cuda/weighted_sum.h"
#include "emulator/machine.h"

namespace emulator {

struct EntryPoints {
  decltype(&crossmodal::cuda::attention_fwd_workspace) attention_fwd_workspace;
  decltype(&crossmodal::cuda::attention_fwd) attention_fwd;
  decltype(&crossmodal::cuda::attention_bwd_workspace) attention_bwd_workspace;
  decltype(&crossmodal::cuda::attention_bwd) attention_bwd;
  decltype(&crossmodal::cuda::associate_workspace) associate_workspace;
  decltype(&crossmodal::cuda::associate) associate;
  decltype(&crossmodal::cuda::weighted_sum_fwd) weighted_sum_fwd;
  decltype(&crossmodal::cuda::weighted_sum_bwd) weighted_sum_bwd;
  decltype(&::emulator::set_mode) set_mode;
  int *bug, *launches_left;
};

}  // namespace emulator
