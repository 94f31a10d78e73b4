// What runs a problem: the kernels of the CPU, or those of a GPU. Operators bind their tensors once
// and for both.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <memory>

#include "core/attention_problem.h"
#include "core/double_backward.h"
#include "core/weighted_sum_problem.h"
#include "torch/attention_gradients.h"
#include "torch/tensors.h"

namespace crossmodal {

class Kernels {
 public:
  virtual ~Kernels() = default;

  // Whether this thread may read what tensors hold: lengths, offsets, a seed.
  virtual bool read_on_host() const = 0;

  // `like` is of the problem's device: what else is needed is allocated there.
  virtual void attention_fwd(const AttentionProblem& problem,
                             const torch::stable::Tensor& like) const = 0;
  // Allocates what it needs beside the gradients that are bound already, runs, and returns the
  // gradients of terms and sink.
  virtual TermGradients attention_bwd(const GradientInputs& inputs, BoundAttention* bound,
                                      AttentionBackward* backward) const = 0;
  // Likewise for the backward of backward, which only the CPU has.
  virtual TermGradients attention_double_bwd(const GradientInputs&, BoundAttention*,
                                             AttentionDoubleBackward*) const {
    STD_TORCH_CHECK(false, "attention: no kernel for second derivatives on this device");
  }
  // `weights` is what request.weights points at. The problem has statistics if they are asked for
  // here.
  virtual bool associate_needs_statistics() const = 0;
  virtual void associate(const AttentionProblem& problem, const AssociateProblem& request,
                         const torch::stable::Tensor& weights) const = 0;
  virtual void weighted_sum_fwd(const WeightedSumProblem& problem) const = 0;
  virtual void weighted_sum_bwd(const WeightedSumProblem& problem,
                                const WeightedSumBackward& backward) const = 0;
};

// Those of the tensor's device, which is current as long as they live.
std::unique_ptr<const Kernels> kernels_of(const torch::stable::Tensor& tensor);

std::unique_ptr<const Kernels> cpu_kernels();
// Enqueues on `stream`, a cudaStream_t.
std::unique_ptr<const Kernels> cuda_kernels(void* stream);

}  // namespace crossmodal
