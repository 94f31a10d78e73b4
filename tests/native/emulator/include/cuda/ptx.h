// csrc/cuda/ptx.h for the emulator: the same functions, with what the PTX manual says about them.
#pragma once

#include <cuda_runtime.h>

#include "cpu/kernels/half.h"

namespace crossmodal::cuda {

namespace half = cpu::emulated;

inline char* shared_memory() { return ::emulator::shared_begin(); }

// Counted from its beginning, which on a GPU is a multiple of whatever rows are permuted by.
using SharedAddress = uint32_t;

inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(static_cast<const char*>(pointer) - ::emulator::shared_begin());
}

inline void check_shared(const void* pointer) {
  const char* p = static_cast<const char*>(pointer);
  if (p < ::emulator::shared_begin() ||
      p + 16 > ::emulator::shared_begin() + ::emulator::shared_size())
    ::emulator::fail("an address outside shared memory");
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) ::emulator::fail("a misaligned shared address");
}

inline void copy_async(void* shared, const void* global, int bytes) {
  check_shared(shared);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    ::emulator::fail("an asynchronous copy from a misaligned address");
  if (bytes < 0 || bytes > 16) ::emulator::fail("an asynchronous copy of no valid size");
  ::emulator::start_copy([=] {
    std::memset(shared, 0, 16);
    if (bytes > 0) std::memcpy(shared, global, bytes);
  });
}
inline void copy_async_if(bool there, SharedAddress shared, const void* global) {
  copy_async(::emulator::shared_begin() + shared, global, there ? 16 : 0);
}
inline void copy_async(void* shared, const void* global) { copy_async(shared, global, 16); }
inline void load_once(uint32_t (&r)[4], const void* global) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    ::emulator::fail("a load of 16 bytes from a misaligned address");
  std::memcpy(r, global, 16);
}
inline void store_chunk(void* global, const uint32_t (&r)[4]) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    ::emulator::fail("a store of 16 bytes to a misaligned address");
  std::memcpy(global, r, 16);
}
inline void commit_copies() { ::emulator::commit_copies(); }
template <int kGroupsLeft>
void wait_for_copies() {
  ::emulator::wait_for_copies(kGroupsLeft);
}

template <bool kTransposed>
void load_four(uint32_t (&r)[4], SharedAddress address) {
  const void* row = ::emulator::shared_begin() + address;
  check_shared(row);
  ::emulator::warp_instruction("ldmatrix", row, r, [](::emulator::WarpSlots& slots) {
    uint32_t loaded[32][4];
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e) {
          const int along = 2 * (l % 4) + e, across = l / 4;
          const int i = kTransposed ? along : across, j = kTransposed ? across : along;
          std::memcpy(&pair[e], static_cast<const char*>(slots.in[m * 8 + i]) + 2 * j, 2);
        }
        loaded[l][m] = pair[0] | uint32_t{pair[1]} << 16;
      }
    for (int l = 0; l < 32; ++l) std::memcpy(slots.out[l], loaded[l], 16);
  });
}
inline void load_matrices(uint32_t (&r)[4], SharedAddress row) { load_four<false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
  load_four<true>(r, row);
}

inline float to_float(BFloat16 x) { return half::to_float(x); }
inline float to_float(Float16 x) { return half::to_float(x); }

template <class T>
float element(uint32_t word, int place) {
  return to_float(T{static_cast<uint16_t>(word >> 16 * place)});
}

struct MatrixOperands {
  uint32_t a[4], b[2];
};

template <class T>
void multiply_add(T, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const MatrixOperands in = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  ::emulator::warp_instruction("mma", &in, c, [](::emulator::WarpSlots& slots) {
    float a[16][16], b[8][16];
    for (int l = 0; l < 32; ++l) {
      const MatrixOperands& x = *static_cast<const MatrixOperands*>(slots.in[l]);
      const int group = l / 4, pair = 2 * (l % 4);
      for (int e = 0; e < 2; ++e) {
        for (int r = 0; r < 4; ++r)
          a[group + r % 2 * 8][pair + r / 2 * 8 + e] = element<T>(x.a[r], e);
        for (int r = 0; r < 2; ++r) b[group][pair + r * 8 + e] = element<T>(x.b[r], e);
      }
    }
    for (int l = 0; l < 32; ++l)
      for (int x = 0; x < 4; ++x) {
        const int row = l / 4 + x / 2 * 8, column = 2 * (l % 4) + x % 2;
        float sum = static_cast<float*>(slots.out[l])[x];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
        static_cast<float*>(slots.out[l])[x] = sum;
      }
  });
}

struct TensorFloat32 {};

// To nearest, ties away from zero; the instruction below reads no more than these bits.
inline uint32_t round_to_tf32(uint32_t x) {
  constexpr uint32_t kRead = ~0x1fffu, kInfinity = 0x7f800000u;
  const bool is_finite = (x & kInfinity) != kInfinity;
  return is_finite ? (x + 0x1000u) & kRead : x & kRead | (x & 0x7fffffu ? 0x400000u : 0);
}

inline void multiply_add(TensorFloat32, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
  const MatrixOperands in = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  ::emulator::warp_instruction("mma", &in, c, [](::emulator::WarpSlots& slots) {
    const auto read = [](uint32_t x) { return __uint_as_float(x & ~0x1fffu); };
    float a[16][8], b[8][8];
    for (int l = 0; l < 32; ++l) {
      const MatrixOperands& x = *static_cast<const MatrixOperands*>(slots.in[l]);
      const int group = l / 4, lane = l % 4;
      for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][lane + r / 2 * 4] = read(x.a[r]);
      for (int r = 0; r < 2; ++r) b[group][lane + r * 4] = read(x.b[r]);
    }
    for (int l = 0; l < 32; ++l)
      for (int x = 0; x < 4; ++x) {
        const int row = l / 4 + x / 2 * 8, column = 2 * (l % 4) + x % 2;
        float sum = static_cast<float*>(slots.out[l])[x];
        for (int k = 0; k < 8; ++k) sum += a[row][k] * b[column][k];
        static_cast<float*>(slots.out[l])[x] = sum;
      }
  });
}

inline uint32_t pack(BFloat16, float low, float high) {
  return half::to_bfloat16(low).bits | uint32_t{half::to_bfloat16(high).bits} << 16;
}
inline uint32_t pack(Float16, float low, float high) {
  return half::to_float16(low).bits | uint32_t{half::to_float16(high).bits} << 16;
}

inline void unpack(BFloat16, uint32_t pair, float& low, float& high) {
  low = to_float(BFloat16{static_cast<uint16_t>(pair)});
  high = to_float(BFloat16{static_cast<uint16_t>(pair >> 16)});
}
inline void unpack(Float16, uint32_t pair, float& low, float& high) {
  low = to_float(Float16{static_cast<uint16_t>(pair)});
  high = to_float(Float16{static_cast<uint16_t>(pair >> 16)});
}
inline char* row_address(char* first, int row, int stride) { return first + int64_t{row} * stride; }
inline void keep(float&) {}
inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float reciprocal_fast(float x) { return 1 / x; }
inline void keep_loads_here() {}

}  // namespace crossmodal::cuda
