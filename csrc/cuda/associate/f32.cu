#include "cuda/associate_kernel.h"

namespace crossmodal::cuda {

template void launch_associate<FmaEngine<float>, 32>(const AttentionProblem&,
                                                     const AssociateProblem&, const Tiling&, void*);

}  // namespace crossmodal::cuda
