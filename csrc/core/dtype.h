// Element types that kernels know. Values are part of the library's C interface: append, never
// renumber.
#pragma once

#include <cstddef>

namespace crossmodal {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace crossmodal
