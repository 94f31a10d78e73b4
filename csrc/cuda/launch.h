// What every launch_* function needs.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace crossmodal::cuda {

inline void check(cudaError_t error, const char* kernel) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
  }
}

constexpr int kWarp = 32;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The most blocks that a grid's first dimension takes; blocks loop over the tiles beyond it.
constexpr int64_t kMaxGridX = 2147483647;

// What a block may have without asking for more.
constexpr size_t kSharedBytesUnasked = 48 << 10;

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}
inline size_t most_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// Enqueues `tiles` blocks at most. Errors of a kernel that is still running surface at a later
// call, as they do in torch: waiting for them here would stall the stream.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t tiles, int threads,
            size_t shared_bytes, void* stream, const Arguments&... arguments) {
  if (tiles == 0) return;  // an empty grid is an error to CUDA, not to us
  if (shared_bytes > kSharedBytesUnasked) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(tiles, kMaxGridX)));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace crossmodal::cuda
