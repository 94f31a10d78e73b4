#include "cuda/associate_kernel.h"

namespace crossmodal::cuda {

template void launch_associate<MmaEngine<BFloat16>, 64>(const AttentionProblem&,
                                                        const AssociateProblem&, const Tiling&,
                                                        void*);

}  // namespace crossmodal::cuda
