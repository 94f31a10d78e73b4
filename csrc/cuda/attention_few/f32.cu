#include "cuda/attention_few_bwd.h"
#include "cuda/attention_few_fwd.h"

namespace crossmodal::cuda {

template void launch_attention_few_fwd<FmaEngine<float>, 1>(const AttentionProblem&, bool,
                                                            const FewTiling&, const RowShares&,
                                                            void*);
template void launch_attention_few_bwd<FmaEngine<float>, 1>(const AttentionProblem&,
                                                            const AttentionBackward&,
                                                            const BackwardWorkspace&,
                                                            const FewTiling&, int, void*);
template void launch_attention_few_fwd<FmaEngine<float>, 2>(const AttentionProblem&, bool,
                                                            const FewTiling&, const RowShares&,
                                                            void*);
template void launch_attention_few_bwd<FmaEngine<float>, 2>(const AttentionProblem&,
                                                            const AttentionBackward&,
                                                            const BackwardWorkspace&,
                                                            const FewTiling&, int, void*);

}  // namespace crossmodal::cuda
