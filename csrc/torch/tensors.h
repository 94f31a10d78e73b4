// What every operator needs from a tensor: its dtype as kernels know it, rows that can be read,
// outputs in the caller's memory order, torch's threads.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "core/dtype.h"
#include "cpu/parallel.h"

namespace crossmodal {

using OptionalTensor = std::optional<torch::stable::Tensor>;

// Errors name the operator and the argument.
DType dtype_of(const torch::stable::Tensor& tensor, const char* op, const char* name);

// An operator's tensors lie on one device: that of `main`.
void check_same_device(const torch::stable::Tensor& tensor, const torch::stable::Tensor& main,
                       const char* op, const char* name);

// The dtype of sums, lse and mass: float32, float64 for float64.
torch::headeronly::ScalarType accumulator_type(DType dtype);

// The tensor itself if its last dimension is contiguous, otherwise a copy that is.
torch::stable::Tensor with_unit_last_stride(const torch::stable::Tensor& tensor);

// An uninitialised (batch, num_heads, rows, width) tensor in the memory order of `like`: heads
// inside rows, as in a transposed (batch, rows, num_heads, width), if `like` has them so.
torch::stable::Tensor empty_in_order_of(const torch::stable::Tensor& like, int64_t rows,
                                        int64_t width);

// A tensor that will be written for the first time: asks the system for large pages where it is
// large, since taking small ones, one fault each, can cost more than computing what goes into them.
torch::stable::Tensor on_large_pages(torch::stable::Tensor tensor);

// A sample's lengths as kernels read them: one int32 or int64 per sample, in a row. Kernels clamp
// what lies outside [0, limit]; under CROSSMODAL_CHECK=1 it is an error here, on the CPU.
torch::stable::Tensor checked_lengths(const torch::stable::Tensor& lengths, const char* op,
                                      const char* name, int64_t batch, int64_t limit);

// Whether CROSSMODAL_CHECK=1 asks for errors where kernels would clamp.
bool checks_values();

// torch's intra-op threads.
cpu::Threads torch_threads();

}  // namespace crossmodal
