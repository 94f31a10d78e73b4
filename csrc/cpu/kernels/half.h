// One number of a half-precision type from or to float, by its bits: for the lanes that no vector
// instruction covers.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/bfloat16.h"
#include "core/float16.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float to_float(BFloat16 h) { return float_of(static_cast<uint32_t>(h.bits) << 16); }

// Round to nearest even; a NaN keeps its upper bits and is made quiet, so that rounding cannot turn
// it into Inf.
inline BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(rounded >> 16)};
}

inline float to_float(Float16 h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = h.bits & 0x7fffu;
  // A subnormal is a whole number of 2^-24.
  if (magnitude < 0x400u) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

// Round to nearest even, Inf from 65520 on.
inline Float16 to_float16(float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 1/2 leaves a multiple of 2^-24, rounded, in the low bits of the sum.
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
