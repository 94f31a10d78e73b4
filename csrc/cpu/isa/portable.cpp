#define CROSSMODAL_ISA portable
#include "cpu/isa/vec_portable.h"
// The vectors come first: everything below is written over them.
#include "cpu/kernels/table.h"
