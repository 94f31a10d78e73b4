#include "torch/kernels.h"

#include "cpu/attention.h"
#include "cpu/weighted_sum.h"

#ifdef CROSSMODAL_WITH_CUDA
#include <torch/csrc/stable/accelerator.h>

#include "torch/cuda_stream.h"
#endif

namespace crossmodal {

using torch::stable::Tensor;

namespace {

#ifdef CROSSMODAL_WITH_CUDA
// Makes the device current for the kernels, which outlive no operator call.
class GuardedKernels final : public Kernels {
 public:
  explicit GuardedKernels(int32_t device)
      : guard_(device), kernels_(cuda_kernels(current_cuda_stream(device))) {}

  bool read_on_host() const override { return kernels_->read_on_host(); }
  void attention_fwd(const AttentionProblem& p, const Tensor& like) const override {
    kernels_->attention_fwd(p, like);
  }
  TermGradients attention_bwd(const GradientInputs& inputs, BoundAttention* bound,
                              AttentionBackward* g) const override {
    return kernels_->attention_bwd(inputs, bound, g);
  }
  bool associate_needs_statistics() const override {
    return kernels_->associate_needs_statistics();
  }
  void associate(const AttentionProblem& p, const AssociateProblem& a,
                 const Tensor& weights) const override {
    kernels_->associate(p, a, weights);
  }
  void weighted_sum_fwd(const WeightedSumProblem& p) const override {
    kernels_->weighted_sum_fwd(p);
  }
  void weighted_sum_bwd(const WeightedSumProblem& p, const WeightedSumBackward& g) const override {
    kernels_->weighted_sum_bwd(p, g);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  std::unique_ptr<const Kernels> kernels_;
};
#endif

}  // namespace

std::unique_ptr<const Kernels> kernels_of([[maybe_unused]] const Tensor& tensor) {
#ifdef CROSSMODAL_WITH_CUDA
  if (tensor.is_cuda()) return std::make_unique<GuardedKernels>(tensor.get_device_index());
#endif
  return cpu_kernels();
}

}  // namespace crossmodal
