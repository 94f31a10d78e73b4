#define CROSSMODAL_ISA avx512_bf16
#include "cpu/isa/vec_avx512.h"
// The vectors come first: everything below is written over them.
#include "cpu/kernels/table.h"
