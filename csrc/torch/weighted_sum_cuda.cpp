#include <torch/csrc/stable/accelerator.h>

#include "cuda/weighted_sum.h"
#include "torch/cuda_stream.h"
#include "torch/weighted_sum.h"

namespace crossmodal {

using torch::stable::Tensor;

Tensor weighted_sum_fwd_cuda(const Tensor& weights, const Tensor& values,
                             const OptionalTensor& lengths, const OptionalTensor& mask) {
  const int32_t device = values.get_device_index();
  const auto check_device = [device](const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, "weighted_sum: ", name,
                    " must be on the same device as values, cuda:", device);
  };
  check_device(weights, "weights");
  if (lengths.has_value()) check_device(*lengths, "lengths");
  if (mask.has_value()) check_device(*mask, "mask");

  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor out = empty_weighted_sum(weights, values);
  const OptionalTensor checked = checked_weighted_sum_lengths(lengths, values);
  cuda::launch_weighted_sum(describe_weighted_sum(weights, values, checked, mask, out),
                            current_cuda_stream(device));
  return out;
}

}  // namespace crossmodal
