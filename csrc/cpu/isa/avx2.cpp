#define CROSSMODAL_ISA avx2
#include "cpu/isa/vec_avx2.h"
// The vectors come first: everything below is written over them.
#include "cpu/kernels/table.h"
