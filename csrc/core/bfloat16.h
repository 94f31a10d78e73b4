// bfloat16 as storage: the upper half of a float. Arithmetic lives with the instruction sets.
#pragma once

#include <cstdint>

namespace crossmodal {

struct BFloat16 {
  uint16_t bits;
};

}  // namespace crossmodal
