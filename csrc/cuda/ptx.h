// The instructions that kernels use beyond C++, one function each. tests/native/emulator has a file
// of the same name, with which g++ compiles the same kernels to run on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/bfloat16.h"
#include "core/float16.h"

namespace crossmodal::cuda {

// The block's dynamic shared memory.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// A place in it, as instructions want it: additions of constants to it are part of them.
using SharedAddress = uint32_t;

__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory in the background: the first `bytes` of them from `global`, zeros
// after. Both addresses are multiples of 16; nothing is read where bytes is 0.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

// All 16 bytes, or zeros, without the arithmetic that a number of bytes known at run time takes.
__device__ __forceinline__ void copy_async_if(bool there, SharedAddress shared,
                                              const void* global) {
  asm volatile(
      "{ .reg .pred absent; setp.eq.u32 absent, %2, 0;\n"
      "  cp.async.cg.shared.global [%0], [%1], 16, absent; }" ::"r"(shared),
      "l"(global), "r"(static_cast<uint32_t>(there))
      : "memory");
}

// The same, always there.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}

// 16 bytes that nobody will read again, to registers.
__device__ __forceinline__ void load_once(uint32_t (&r)[4], const void* global) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "l"(global));
}

// 16 bytes from registers.
__device__ __forceinline__ void store_chunk(void* global, const uint32_t (&r)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

// Closes a group of copies; wait_for_copies<n>() returns once all but the n latest groups are
// there.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroupsLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane l brings the address of row l % 8 of matrix l / 8
// and gets elements (l / 4, 2 * (l % 4)) and the next one of each, or of their transposes.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// c += a * b, 16 x 8 x 16, sums in float. Lane l holds, of c, rows l / 4 and l / 4 + 8 in columns
// 2 * (l % 4) and the next.
__device__ __forceinline__ void multiply_add(BFloat16, float (&c)[4], const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(Float16, float (&c)[4], const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A float of which the last 13 bits take no part in products.
struct TensorFloat32 {};

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
  return y;
}

// c += a * b, 16 x 8 x 8. Lane l holds, of a, rows l / 4 and l / 4 + 8 in column l % 4, then in
// column l % 4 + 4; of b, rows l % 4 and l % 4 + 4 in column l / 4; of c as above.
__device__ __forceinline__ void multiply_add(TensorFloat32, float (&c)[4], const uint32_t (&a)[4],
                                             uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats, rounded to nearest even; `low` stands first in memory.
__device__ __forceinline__ uint32_t pack(BFloat16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t pack(Float16, float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Both numbers of a pair.
__device__ __forceinline__ void unpack(BFloat16, uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void unpack(Float16, uint32_t pair, float& low, float& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high)
      : "r"(pair));
}

// 2^x to two units in the last place, subnormal results as 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The logarithm to base 2, to 2^-22 absolutely.
__device__ __forceinline__ float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to one unit in the last place.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Where row `row` of 32-bit stride, in bytes, begins: one instruction, of which the compiler makes
// four where it knows the stride as a number of 64 bits.
__device__ __forceinline__ char* row_address(char* first, int row, int stride) {
  uint64_t address;
  asm("mad.wide.s32 %0, %1, %2, %3;"
      : "=l"(address)
      : "r"(row), "r"(stride), "l"(reinterpret_cast<uint64_t>(first)));
  return reinterpret_cast<char*>(address);
}

// From here on x is a number of its own, not to be computed again from what it came from.
__device__ __forceinline__ void keep(float& x) { asm volatile("" : "+f"(x)); }

// Loads do not move across it: it bounds how many of them wait in registers at once.
__device__ __forceinline__ void keep_loads_here() { asm volatile("" ::: "memory"); }

}  // namespace crossmodal::cuda
