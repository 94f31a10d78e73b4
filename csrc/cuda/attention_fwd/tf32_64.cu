#include "cuda/attention_fwd.h"

namespace crossmodal::cuda {

template void launch_attention_fwd<Tf32Engine, 64>(const AttentionProblem&, bool, const Tiling&,
                                                   const RowShares&, const TileQueue&, void*);

}  // namespace crossmodal::cuda
