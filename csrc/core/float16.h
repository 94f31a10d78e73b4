// IEEE binary16 as storage. Arithmetic lives with the instruction sets.
#pragma once

#include <cstdint>

namespace crossmodal {

struct Float16 {
  uint16_t bits;
};

}  // namespace crossmodal
