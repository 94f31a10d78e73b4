// Attention on a GPU: chooses a kernel and its tiles for a problem and enqueues it. Nothing here
// waits for the device or reads its memory.
#pragma once

#include <cstddef>

#include "cuda/backward_problem.h"

namespace crossmodal::cuda {

// `stream` is a cudaStream_t of the current device, `workspace` memory of the device of at least as
// many bytes as the function of that name says, 0 included; that function comes first, and throws
// std::invalid_argument where attention_refusal has a reason. A launch that is refused is a
// std::runtime_error.
size_t attention_fwd_workspace(const AttentionProblem& problem);
void attention_fwd(const AttentionProblem& problem, void* workspace, void* stream);

// Term gradients, all zero before: of (batch, num_heads, seqlen_q or 1, seqlen_k or 1) with strides
// in grad_stride; in double where one of the last two is 1, the strides of both are not 0 at once.
// A term whose gradient has both takes part in the sums over samples and heads that its strides of
// 0 ask for; of the others the caller forms them.
size_t attention_bwd_workspace(const AttentionProblem& problem, const AttentionBackward& gradients,
                               const BackwardWorkspace& workspace);
void attention_bwd(const AttentionProblem& problem, const AttentionBackward& gradients,
                   const BackwardWorkspace& workspace, void* stream);

// The problem has no values; its statistics are written first, the weights follow from them.
// `weights_bytes` is what request.weights takes.
size_t associate_workspace(const AttentionProblem& problem);
void associate(const AttentionProblem& problem, const AssociateProblem& request,
               size_t weights_bytes, void* workspace, void* stream);

}  // namespace crossmodal::cuda
