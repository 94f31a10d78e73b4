// Division by a number that the host knows: a product and a shift, where a GPU has no instruction
// and a division takes some thirty, each of which waits for the one before.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace crossmodal::cuda {

class Divisor {
 public:
  Divisor() = default;  // of nothing, by 0
  // From 1 to 2^31.
  explicit Divisor(int64_t divisor) : value_(static_cast<uint32_t>(divisor)) {
    while (int64_t{1} << (shift_ - 31) < divisor) ++shift_;
    if (divisor > 0)
      factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor - 1) / divisor);
  }

  // x / divisor for x below 2^31: the factor is less than divisor / 2^shift off, which comes to
  // less than 1 / divisor. (Granlund & Montgomery, 1994.)
  __device__ uint32_t quotient(uint32_t x) const {
    return static_cast<uint32_t>(uint64_t{x} * factor_ >> shift_);
  }
  // What is left of x.
  __device__ uint32_t remainder(uint32_t x, uint32_t quotient) const {
    return x - quotient * value_;
  }
  __device__ uint32_t value() const { return value_; }

 private:
  uint32_t value_ = 0, factor_ = 0;
  int shift_ = 31;
};

}  // namespace crossmodal::cuda
