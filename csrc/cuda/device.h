// What of a GPU decides which kernels run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace crossmodal::cuda {

struct Device {
  int arch;  // 80, 86, 90
  int multiprocessors;
  size_t shared_bytes;  // that a block may ask for
  int64_t l2_bytes;     // of the second-level cache
};

}  // namespace crossmodal::cuda
