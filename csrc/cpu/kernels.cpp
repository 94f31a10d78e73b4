#include "cpu/kernels.h"

namespace crossmodal::cpu {

// The build defines CROSSMODAL_ISA_* for each instruction set whose kernels it compiles.
namespace portable {
extern const KernelTable kTable;
}
#ifdef CROSSMODAL_ISA_AVX2
namespace avx2 {
extern const KernelTable kTable;
}
#endif
#ifdef CROSSMODAL_ISA_AVX512
namespace avx512 {
extern const KernelTable kTable;
}
#endif
#ifdef CROSSMODAL_ISA_AVX512_BF16
namespace avx512_bf16 {
extern const KernelTable kTable;
}
#endif

static const KernelTable& table_for(Isa isa) {
  switch (isa) {
#ifdef CROSSMODAL_ISA_AVX512_BF16
    case Isa::kAvx512Bf16:
      return avx512_bf16::kTable;
#endif
#ifdef CROSSMODAL_ISA_AVX512
    case Isa::kAvx512:
      return avx512::kTable;
#endif
#ifdef CROSSMODAL_ISA_AVX2
    case Isa::kAvx2:
      return avx2::kTable;
#endif
    default:
      return portable::kTable;
  }
}

const DTypeKernels& kernels_for(Isa isa, DType dtype) {
  const KernelTable& table = table_for(isa);
  switch (dtype) {
    case DType::kFloat32:
      return table.float32;
    case DType::kBFloat16:
      return table.bfloat16;
    case DType::kFloat16:
      return table.float16;
    default:
      return table.float64;
  }
}

ReadMemory read_memory_for(Isa isa) { return table_for(isa).read_memory; }

}  // namespace crossmodal::cpu
