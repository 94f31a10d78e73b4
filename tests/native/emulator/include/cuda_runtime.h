// What kernels and launch code use of the CUDA runtime, on the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

inline const ::emulator::Index &threadIdx = ::emulator::thread_index,
                               &blockIdx = ::emulator::block_index,
                               &blockDim = ::emulator::block_size, &gridDim = ::emulator::grid_size;

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline void __syncthreads() {
  ::emulator::meet(::emulator::block_meeting(), static_cast<int>(blockDim.x), "__syncthreads",
                   [] {});
}
inline void __syncwarp() {
  ::emulator::meet(::emulator::warp_meeting(), ::emulator::kWarp, "__syncwarp", [] {});
}

namespace emulator {

template <class T>
struct Shuffled {
  T value;
  int from;
};
template <class T>
T shuffle(T value, int from) {
  const Shuffled<T> in = {value, from};
  T out;
  warp_instruction("shuffle", &in, &out, [](WarpSlots& slots) {
    for (int l = 0; l < kWarp; ++l) {
      const int source = static_cast<const Shuffled<T>*>(slots.in[l])->from % kWarp;
      *static_cast<T*>(slots.out[l]) = static_cast<const Shuffled<T>*>(slots.in[source])->value;
    }
  });
  return out;
}

}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  if (mask != 0xffffffffu) ::emulator::fail("a shuffle among fewer than all lanes");
  return ::emulator::shuffle(value, ::emulator::lane() ^ lanes);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  if (mask != 0xffffffffu) ::emulator::fail("a shuffle among fewer than all lanes");
  return ::emulator::shuffle(value, from);
}

inline bool __any_sync(unsigned mask, bool x) {
  if (mask != 0xffffffffu) ::emulator::fail("a vote among fewer than all lanes");
  int any = x;
  for (int lanes = 1; lanes < 32; lanes *= 2) any |= __shfl_xor_sync(mask, any, lanes);
  return any;
}

inline int atomicAdd(int* to, int value) {
  const int before = *to;
  *to += value;
  return before;
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}

// -- host side
// -------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }

using cudaStream_t = void*;

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Shared memory of the smallest GPU that has the kernels' instructions (8.6, 8.9), so few
// multiprocessors that problems of 16 heads fill them, and a second-level cache of their number.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 1 << 20;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 6;
      break;
    default:
      *value = 99 << 10;
  }
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= 99 << 10 ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (::emulator::launches_left == 0) return cudaErrorInvalidValue;
  if (::emulator::launches_left > 0) --::emulator::launches_left;
  const dim3& grid = config->gridDim;
  if (grid.y > 65535) return cudaErrorInvalidValue;
  ::emulator::run({grid.x, grid.y, 1}, static_cast<int>(config->blockDim.x),
                  config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
