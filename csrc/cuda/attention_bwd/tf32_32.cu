#include "cuda/attention_bwd_launch.h"

namespace crossmodal::cuda {

template void launch_attention_bwd<Tf32Engine, 32>(const AttentionProblem&,
                                                   const AttentionBackward&,
                                                   const BackwardWorkspace&, const BackwardTiling&,
                                                   int, bool, void*);
template void launch_attention_bwd_terms<Tf32Engine, 32>(const AttentionProblem&,
                                                         const AttentionBackward&,
                                                         const BackwardWorkspace&, const Tiling&,
                                                         void*);

}  // namespace crossmodal::cuda
