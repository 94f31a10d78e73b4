#include "cuda/associate_kernel.h"

namespace crossmodal::cuda {

template void launch_associate<FmaEngine<double>, 16>(const AttentionProblem&,
                                                      const AssociateProblem&, const Tiling&,
                                                      void*);

}  // namespace crossmodal::cuda
