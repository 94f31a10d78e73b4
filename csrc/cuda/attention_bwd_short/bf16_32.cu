#include "cuda/attention_bwd_short.h"

namespace crossmodal::cuda {

template void launch_attention_bwd_short<MmaEngine<BFloat16>, 32>(const AttentionProblem&,
                                                                  const AttentionBackward&,
                                                                  const BackwardWorkspace&,
                                                                  const BackwardTiling&, int,
                                                                  void*);

}  // namespace crossmodal::cuda
