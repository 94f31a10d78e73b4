"""Compiler flags, in one place for the build and for the checks."""

from __future__ import annotations

from build_tools.settings import CudaToolkit

# The oldest torch whose stable ABI the library uses; it runs there and on everything newer.
TORCH_TARGET = "2.10"
TORCH_TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x020a000000000000"

CXX_FLAGS = (
    *("-std=c++17", "-O3", "-Wall", "-Wextra", "-fPIC", "-Icsrc"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-ffunction-sections", "-fdata-sections"),
)

# Not -ffast-math: kernels must tell NaN and infinity from numbers.
KERNEL_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *(*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
    # g++ before 13 warns about its own AVX-512 headers (gcc.gnu.org/PR105593); what is truly
    # uninitialized shows in the other instruction sets, which compile the same code.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
}
X86_MACHINES = ("x86_64", "AMD64")

# The version script leaves only crossmodal_* visible, cudart's and the standard library's symbols
# stay inside. --gc-sections drops what nothing refers to.
LIBRARY_FLAGS = (
    *("-shared", "-Wl,-soname,libcrossmodal.so", "-Wl,--version-script=csrc/exports.map"),
    *("-Wl,--gc-sections", "-Wl,-z,relro"),
)

NVCC_FLAGS = ("-std=c++17", "-O3", "-Icsrc", "-cudart", "static")
NVCC_HOST_FLAGS = ("-Xcompiler", "-fPIC,-fvisibility=hidden")


def virtual_arch(cuda: CudaToolkit) -> str:
    """What kernels are translated for: the oldest architecture, whose instructions are all that they use.

    Its letter goes: 90a's PTX would run on nothing but Hopper.
    """
    return min((arch.rstrip("af") for arch in cuda.archs), key=int)


def gencode_flags(cuda: CudaToolkit) -> list[str]:
    """One translation to PTX, half of what compiling takes, from which every architecture's code is made.

    The PTX itself comes along, for GPUs newer than the build.
    """
    virtual = virtual_arch(cuda)
    codes = [*(f"sm_{arch}" for arch in cuda.archs), f"compute_{virtual}"]
    return [f"-gencode=arch=compute_{virtual},code=[{','.join(codes)}]"]


def sanitizer_flags(sanitizer: str | None) -> list[str]:
    """For compiling; linking needs the first of them."""
    if sanitizer is None:
        return []
    flags = [f"-fsanitize={sanitizer}", "-O1", "-fno-omit-frame-pointer", "-g1"]
    if sanitizer == "address":
        # Calls in place of inline checks: AVX2's kernels compile in 48 s in place of 130 (197 with -g).
        flags.append("--param=asan-instrumentation-with-call-threshold=0")
    if sanitizer == "undefined":
        flags.append("-fno-sanitize-recover=undefined")  # a finding must fail, not be printed
    return flags
