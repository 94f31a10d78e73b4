"""Compiles every CUDA source for every architecture, as the build does, and reads ptxas' report; needs no GPU.

    python -m build_tools.check_cuda [part of a source's path...]

Fails when a kernel keeps anything in local memory, needs more registers than its occupancy is planned
with, lacks the matrix instructions that it is made for, or when ptxas had to serialize wgmma: all of
that is correct and several times slower, which no test of results would notice. Machine code is looked
at where there is a disassembler: on PATH, in $CUDA_HOME/bin, or in a package, nvidia-cuda-nvdisasm or Triton.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_tools.flags import NVCC_FLAGS, virtual_arch
from build_tools.settings import ROOT, BuildError, CudaToolkit, find_cuda

# ptxas' advice that wgmma runs one at a time, for two reasons.
SERIALIZED = ("C7508", "C7512")

# Registers of a thread, by what a kernel's name contains; the first that fits counts. 128 threads to a
# block: 168 leave room for three blocks on a multiprocessor, 255 for two. Weighted sums: three blocks of
# 7 warps, or four of 5.
REGISTER_CAPS = (
    (r"attention_fwd_kernel<.*16>, (32|64), true>", 168),
    (r"row_sum_kernel<.*16>, 0, true>", 80),
    (r"row_sum_kernel<.*16>, 1, true>", 96),
    (r"row_products_kernel<.*16>", 80),
    (r"", 255),
)

LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")
MATRIX_INSTRUCTION = "HMMA"
# Sources of kernels whose products are matrix instructions.
MADE_OF_MATRIX_INSTRUCTIONS = re.compile(r"^(b?f16|tf32|weighted_sum)")
WITHOUT_THEM = "attention_few"


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
        return re.sub(r"\((bool|int|Along)\)", "", name).split("(")[0]

    @property
    def faults(self) -> list[str]:
        name = self.name
        cap = next(cap for pattern, cap in REGISTER_CAPS if re.search(pattern, name))
        place = f"{name} sm_{self.arch}"
        found = {
            "spills registers": self.spilled_bytes > 0,
            "has a stack frame": self.stack_bytes > 0,
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


def find_disassembler() -> str | None:
    """nvdisasm, wherever there is one."""
    home = os.environ.get("CUDA_HOME")
    folders = [f"{home}/bin"] if home else []
    for package, inside in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            folders += map(str, sorted(Path(place).glob(inside)))
    found = (shutil.which("nvdisasm", path=path) for path in (None, *folders))
    return next((tool for tool in found if tool), None)


def code_faults(source: Path, arch: str, code: str) -> list[str]:
    """What is wrong with the machine code of one source."""
    name = f"{source.parent.name}/{source.name} sm_{arch}"
    faults = [f"{name}: local memory in machine code"] if LOCAL_MEMORY.search(code) else []
    is_made_of_them = MADE_OF_MATRIX_INSTRUCTIONS.search(source.name) and source.parent.name != WITHOUT_THEM
    if is_made_of_them and MATRIX_INSTRUCTION not in code:
        faults.append(f"{name}: no {MATRIX_INSTRUCTION} in machine code")
    return faults


def compile_one(cuda: CudaToolkit, disassembler: str | None, source: Path) -> tuple[str, list[str]]:
    """What to print about one source, and what is wrong with it: its PTX, then that as each architecture's code."""
    virtual, texts, faults = virtual_arch(cuda), [], []
    with tempfile.TemporaryDirectory() as folder:
        ptx, binary = Path(folder, "code.ptx"), Path(folder, "code.cubin")
        command = [cuda.nvcc, *NVCC_FLAGS, f"-arch=compute_{virtual}", "-ptx", str(source), "-o", str(ptx)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode != 0:
            return result.stderr, [f"{source.parent.name}/{source.name}: does not compile"]
        for arch in cuda.archs:
            name = f"{source.parent.name}/{source.name} sm_{arch}"
            command = [cuda.nvcc, f"-arch=compute_{virtual}", f"-code=sm_{arch}", "-cubin", "-Xptxas", "-v"]
            result = subprocess.run([*command, str(ptx), "-o", str(binary)], capture_output=True, text=True)
            if result.returncode != 0:
                texts.append(result.stderr)
                faults.append(f"{name}: does not assemble")
                continue
            reports = parse_ptxas(result.stderr, arch)
            texts += map(str, reports)
            faults += [fault for report in reports for fault in report.faults]
            faults += [f"{name}: ptxas {code}" for code in SERIALIZED if code in result.stderr]
            if disassembler and reports:
                code = subprocess.check_output([disassembler, "-c", str(binary)], text=True)
                faults += code_faults(source, arch, code)
    return "\n".join(texts), faults


def main() -> int:
    try:
        cuda = find_cuda()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if cuda is None:
        print("no nvcc, or CROSSMODAL_CUDA=0: nothing checked")
        return 0
    parts = sys.argv[1:] or [""]
    sources = sorted(source for source in ROOT.glob("csrc/cuda/**/*.cu") if any(part in str(source) for part in parts))
    disassembler = find_disassembler()
    faults, start = [], time.monotonic()
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        for text, found in pool.map(lambda source: compile_one(cuda, disassembler, source), sources):
            if text:
                print(text)
            faults += found
    for fault in faults:
        print(fault, file=sys.stderr)
    print("machine code looked at" if disassembler else "no nvdisasm: machine code not looked at")
    seconds, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(sources)} sources for {', '.join(cuda.archs)} by nvcc {cuda.version}: {len(faults)} faults")
    print(f"{seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU time")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
