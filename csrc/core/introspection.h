// What the library tells about itself, as plain C: read by `_native` (pybind11), by ctypes where
// `_native` is absent, and by C++ programs. Returned texts belong to the library; those that can
// change are valid until the calling thread calls the same function again.
#pragma once

#include <stdint.h>

#define CROSSMODAL_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// JSON object: version, compiler, torch_target, sanitizer (or null), cuda (null, or {version,
// archs}).
CROSSMODAL_API const char* crossmodal_build_info(void);

// JSON list, best first, of {name, compiled, supported, active}.
CROSSMODAL_API const char* crossmodal_cpu_isas(void);

// Makes the named instruction set the active one; returns null, or what is wrong with the name.
CROSSMODAL_API const char* crossmodal_select_isa(const char* name);

// What is wrong with the environment variable CROSSMODAL_CPU_ISA, or null.
CROSSMODAL_API const char* crossmodal_isa_environment_error(void);

// JSON object: the kernel that would run this attention problem and why better ones would not.
// dtype as in core/dtype.h.
CROSSMODAL_API const char* crossmodal_attention_plan(int dtype, int64_t batch, int64_t num_heads,
                                                     int64_t seqlen_q, int64_t seqlen_k,
                                                     int64_t head_dim, int64_t head_dim_v,
                                                     int is_causal);

// JSON object: the kernels of forward and backward that a GPU would run this attention problem
// with, and why better ones would not; present or not, whether the library has them or not.
// num_heads_k: 0 where sources differ; is_plain: without masks, biases, cap, sink and dropout;
// is_exact: gradients of biases, sinks or weights are asked for; is_ragged: packed or with lengths;
// allow_tf32: as in AttentionProblem.
// arch: 90 for compute capability 9.0; shared_bytes: what a block may ask for; l2_bytes: the
// second-level cache.
CROSSMODAL_API const char* crossmodal_cuda_attention_plan(
    int dtype, int64_t batch, int64_t num_heads, int64_t num_heads_k, int64_t seqlen_q,
    int64_t seqlen_k, int64_t head_dim, int64_t head_dim_v, int is_plain, int is_exact,
    int is_ragged, int allow_tf32, int arch, int multiprocessors, int64_t shared_bytes,
    int64_t l2_bytes);

// GFLOP/s of multiply-adds out of registers, one thread, in the form that the active instruction
// set's kernels of this dtype use. Takes about 50 ms.
CROSSMODAL_API double crossmodal_measure_peak(int dtype);

// GB/s at which one thread reads a buffer of `bytes` (positive, rounded up to whole pages) over and
// over; 0 when there is no such memory.
CROSSMODAL_API double crossmodal_measure_bandwidth(int64_t bytes);

#ifdef __cplusplus
}
#endif
