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

template <class... Parameters>
void allow_shared_bytes(const char* name, void (*kernel)(Parameters...), size_t shared_bytes) {
  if (shared_bytes <= kSharedBytesUnasked) return;
  // All there is, whatever is asked for: the limit belongs to the function, and a smaller one, set
  // by another thread between this and the launch, would refuse the launch.
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (shared_bytes > static_cast<size_t>(most)) check(cudaErrorInvalidValue, name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), name);
}

// That the device holds.
template <class... Parameters>
int64_t blocks_at_once(const char* name, void (*kernel)(Parameters...), int threads,
                       size_t shared_bytes) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        name);
  return int64_t{std::max(1, blocks)} * device_attribute(cudaDevAttrMultiProcessorCount);
}

// Enqueues a grid of blocks. Errors of a kernel that is still running surface at a later call, as
// they do in torch: waiting for them here would stall the stream.
template <class... Parameters, class... Arguments>
void launch_grid(const char* name, void (*kernel)(Parameters...), const dim3& grid, int threads,
                 size_t shared_bytes, void* stream, const Arguments&... arguments) {
  // The most that every driver takes.
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters are too large");
  if (grid.x == 0 || grid.y == 0) return;  // an empty grid is an error to CUDA, not to us
  allow_shared_bytes(name, kernel, shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// `tiles` blocks at most.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t tiles, int threads,
            size_t shared_bytes, void* stream, const Arguments&... arguments) {
  launch_grid(name, kernel, dim3(static_cast<unsigned>(std::min(tiles, kMaxGridX))), threads,
              shared_bytes, stream, arguments...);
}

}  // namespace crossmodal::cuda
