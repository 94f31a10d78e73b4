// What the machine can do at most: multiply-adds out of registers, reads out of memory. Benchmarks
// state kernels as a share of these.
#pragma once

#include <cstdint>

#include "cpu/kernels/engine.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// The compiler has to believe that the value changes here: else it would move a product that is the
// same in every round out of the loop, or drop a load that nothing uses.
template <class V>
inline void keep_in_register(V& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

// `rounds` multiply-adds on each of the chains; returns the number of floating-point operations.
template <class E>
double multiply_in_registers(int64_t rounds) {
  // Two units times a latency of four to six cycles; with two operands they fit 16 registers.
  constexpr int kChains = 12;
  constexpr typename E::Word one = E::kPerWord == 2 ? static_cast<typename E::Word>(0x3f803f80)
                                                    : static_cast<typename E::Word>(1);
  typename E::Words a = E::broadcast(one), b = E::broadcast(one);
  typename E::Vec sums[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    sums[i] = E::Vec::zero();
    keep_in_register(sums[i].x);  // chains that are known to be equal would be one chain
  }
  for (int64_t round = 0; round < rounds; ++round) {
    if constexpr (E::kPerWord == 2) {
      keep_in_register(a);
    } else {
      keep_in_register(a.x);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = E::multiply_add(a, b, sums[i]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) keep_in_register(sums[i].x);
  return 2.0 * rounds * kChains * E::Vec::kLanes * E::kPerWord;
}

constexpr int kVectorsPerRead = 8;

// Reads `bytes`, a multiple of 8 vectors, `passes` times over.
inline void read_memory(const char* data, int64_t bytes, int64_t passes) {
  constexpr int kStep = kVectorsPerRead * VecF::kLanes;
  const float* const begin = reinterpret_cast<const float*>(data);
  const float* const end = begin + bytes / static_cast<int64_t>(sizeof(float));
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (const float* p = begin; p != end; p += kStep) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectorsPerRead; ++i) {
        VecF vector = VecF::load(p + i * VecF::kLanes);
        keep_in_register(vector.x);
      }
    }
  }
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
