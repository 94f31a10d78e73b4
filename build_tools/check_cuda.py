"""Compiles every CUDA source for every architecture and reads ptxas' report; needs no GPU.

    python -m build_tools.check_cuda

Fails when a kernel keeps anything in local memory, needs more registers than its occupancy is planned
with, lacks the matrix instructions that it is made for, or when ptxas had to serialize wgmma: all of
that is correct and several times slower, which no test of results would notice. Machine code is looked
at where there is a disassembler: on PATH, in $CUDA_HOME/bin, or in Triton's package.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_tools.flags import NVCC_FLAGS
from build_tools.settings import ROOT, BuildError, CudaToolkit, find_cuda

# ptxas' advice that wgmma runs one at a time, for two reasons.
SERIALIZED = ("C7508", "C7512")

# Registers of a thread, by what a kernel's name contains; the first that fits counts. 128 threads to a
# block: 168 leave room for three blocks on a multiprocessor, 255 for two.
REGISTER_CAPS = (
    (r"attention_fwd_kernel<.*16>, (32|64), true>", 168),
    (r"", 255),
)

# What is at the limit of 255 registers and does not fit yet: bytes of local memory, which may not grow.
KNOWN_LOCAL_MEMORY = (
    (r"attention_fwd_kernel<.*16>, 128, false> sm_90a", 68),
    (r"attention_bwd_keys_kernel<FmaEngine<float>, 64, false> sm_90a", 52),
)

LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")
MATRIX_INSTRUCTION = "HMMA"
# Sources of half-precision kernels, whose products are matrix instructions.
MADE_OF_MATRIX_INSTRUCTIONS = re.compile(r"^b?f16")


@dataclass(frozen=True)
class KernelReport:
    kernel: str
    arch: str
    registers: int
    stack_bytes: int
    spilled_bytes: int

    @property
    def name(self) -> str:
        name = subprocess.check_output(["c++filt", self.kernel], text=True).strip()
        name = re.sub(r"\(anonymous namespace\)::|crossmodal::|cuda::|^void ", "", name)
        return re.sub(r"\((bool|int)\)", "", name).split("(")[0]

    @property
    def known_local_memory(self) -> int:
        place = f"{self.name} sm_{self.arch}"
        return next((most for pattern, most in KNOWN_LOCAL_MEMORY if re.search(pattern, place)), 0)

    @property
    def faults(self) -> list[str]:
        name = self.name
        cap = next(cap for pattern, cap in REGISTER_CAPS if re.search(pattern, name))
        place = f"{name} sm_{self.arch}"
        beyond = self.stack_bytes + self.spilled_bytes > self.known_local_memory
        found = {
            "spills registers": beyond and self.spilled_bytes > 0,
            "has a stack frame": beyond and self.stack_bytes > 0,
            f"takes {self.registers} registers, more than {cap}": self.registers > cap,
        }
        return [f"{place}: {fault}" for fault, is_there in found.items() if is_there]

    def __str__(self) -> str:
        local = self.spilled_bytes + self.stack_bytes
        memory = f"{local} bytes of LOCAL MEMORY" if local else "no local memory"
        return f"sm_{self.arch:4} {self.registers:3} registers, {memory}  {self.name}"


def parse_ptxas(text: str, arch: str) -> list[KernelReport]:
    """What `-Xptxas -v` prints, one report per kernel."""
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)'"
        r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return [
        KernelReport(
            kernel=match["kernel"],
            arch=arch,
            registers=int(match["registers"]),
            stack_bytes=int(match["stack"]),
            spilled_bytes=int(match["stores"]) + int(match["loads"]),
        )
        for match in pattern.finditer(text)
    ]


def find_disassembler(cuda: CudaToolkit) -> str | None:
    """nvdisasm, wherever there is one."""
    home = os.environ.get("CUDA_HOME")
    spec = importlib.util.find_spec("triton")
    folders = [f"{home}/bin"] if home else []
    folders += [f"{place}/backends/nvidia/bin" for place in (spec.submodule_search_locations or [] if spec else [])]
    found = (shutil.which("nvdisasm", path=path) for path in (None, *folders))
    return next((tool for tool in found if tool), None)


def code_faults(source: Path, arch: str, code: str, known: bool = False) -> list[str]:
    """What is wrong with the machine code of one source; ``known``: one of its kernels may have local memory."""
    name = f"{source.parent.name}/{source.name} sm_{arch}"
    faults = [f"{name}: local memory in machine code"] if LOCAL_MEMORY.search(code) and not known else []
    if MADE_OF_MATRIX_INSTRUCTIONS.search(source.name) and MATRIX_INSTRUCTION not in code:
        faults.append(f"{name}: no {MATRIX_INSTRUCTION} in machine code")
    return faults


def compile_one(cuda: CudaToolkit, disassembler: str | None, source: Path, arch: str) -> tuple[str, list[str]]:
    """What to print about one source on one architecture, and what is wrong with it."""
    name = f"{source.parent.name}/{source.name} sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "code.cubin")
        command = [cuda.nvcc, *NVCC_FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
        command += [str(source), "-o", str(binary)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode != 0:
            return result.stderr, [f"{name}: does not compile"]
        code = subprocess.check_output([disassembler, "-c", str(binary)], text=True) if disassembler else None
    reports = parse_ptxas(result.stderr, arch)
    faults = [fault for report in reports for fault in report.faults]
    faults += [f"{name}: ptxas {code}" for code in SERIALIZED if code in result.stderr]
    if code is not None and reports:
        faults += code_faults(source, arch, code, known=any(report.known_local_memory for report in reports))
    return "\n".join(map(str, reports)), faults


def main() -> int:
    try:
        cuda = find_cuda()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if cuda is None:
        print("no nvcc, or CROSSMODAL_CUDA=0: nothing checked")
        return 0
    sources = sorted(ROOT.glob("csrc/cuda/**/*.cu"))
    jobs = [(source, arch) for source in sources for arch in cuda.archs]
    disassembler = find_disassembler(cuda)
    faults, start = [], time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        for text, found in pool.map(lambda job: compile_one(cuda, disassembler, *job), jobs):
            if text:
                print(text)
            faults += found
    for fault in faults:
        print(fault, file=sys.stderr)
    print("machine code looked at" if disassembler else "no nvdisasm: machine code not looked at")
    seconds = time.monotonic() - start
    print(f"{len(jobs)} compilations by nvcc {cuda.version} in {seconds:.0f} s, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
