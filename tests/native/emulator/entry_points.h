// What the emulated kernels offer to the operators: a table, so that one build of the operators can
// run any build of the kernels, mutilated ones included.
#pragma once

#include "cuda/attention.h"
#include "cuda/weighted_sum.h"
#include "emulator/machine.h"

namespace emulator {

struct EntryPoints {
  decltype(&crossmodal::cuda::attention_fwd) attention_fwd;
  decltype(&crossmodal::cuda::attention_bwd) attention_bwd;
  decltype(&crossmodal::cuda::launch_weighted_sum) weighted_sum_fwd;
  decltype(&::emulator::set_mode) set_mode;
};

}  // namespace emulator
