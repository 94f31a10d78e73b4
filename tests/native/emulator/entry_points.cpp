#include "emulator/entry_points.h"

extern "C" __attribute__((visibility("default"))) const emulator::EntryPoints emulated_kernels;
const emulator::EntryPoints emulated_kernels = {crossmodal::cuda::attention_fwd_workspace,
                                                crossmodal::cuda::attention_fwd,
                                                crossmodal::cuda::attention_bwd_workspace,
                                                crossmodal::cuda::attention_bwd,
                                                crossmodal::cuda::associate_workspace,
                                                crossmodal::cuda::associate,
                                                crossmodal::cuda::weighted_sum_fwd,
                                                crossmodal::cuda::weighted_sum_bwd,
                                                emulator::set_mode,
                                                &emulator::bug,
                                                &emulator::launches_left};
