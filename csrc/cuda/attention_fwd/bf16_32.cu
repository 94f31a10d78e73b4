#include "cuda/attention_fwd.h"

namespace crossmodal::cuda {

template void launch_attention_fwd<MmaEngine<BFloat16>, 32>(const AttentionProblem&, const Tiling&,
                                                            Alignment, void*);

}  // namespace crossmodal::cuda
