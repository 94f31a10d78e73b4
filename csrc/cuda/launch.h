// What every launch_* function needs.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace crossmodal::cuda {

// Right after a launch. Errors of a kernel that is still running surface at a later call, as they
// do in torch: waiting for them here would stall the stream.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace crossmodal::cuda
