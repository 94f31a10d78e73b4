"""Compiles every CUDA source for every architecture and reads ptxas' report; needs no GPU.

    python -m build_tools.check_cuda

Fails when a kernel spills registers to memory, or when ptxas had to serialize wgmma instructions:
both are correct and several times slower, which no test of results would notice.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_tools.flags import NVCC_FLAGS
from build_tools.settings import ROOT, BuildError, CudaToolkit, find_cuda

# ptxas' advice that wgmma runs one at a time, for two reasons.
SERIALIZED = ("C7508", "C7512")


@dataclass(frozen=True)
class KernelReport:
    kernel: str
    arch: str
    registers: int
    spilled_bytes: int

    def __str__(self) -> str:
        name = subprocess.check_output(["c++filt", self.kernel], text=True).strip()
        name = re.sub(r"\(anonymous namespace\)::|\(.*\)$|^void ", "", name)
        spills = f"{self.spilled_bytes} bytes SPILLED" if self.spilled_bytes else "no spills"
        return f"sm_{self.arch:4} {self.registers:3} registers, {spills}  {name}"


def parse_ptxas(text: str, arch: str) -> list[KernelReport]:
    """What `-Xptxas -v` prints, one report per kernel."""
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    return [
        KernelReport(
            kernel=match["kernel"],
            arch=arch,
            registers=int(match["registers"]),
            spilled_bytes=int(match["stores"]) + int(match["loads"]),
        )
        for match in pattern.finditer(text)
    ]


def compile_one(cuda: CudaToolkit, source: Path, arch: str) -> tuple[str, list[str]]:
    """What to print about one source on one architecture, and what is wrong with it."""
    command = [cuda.nvcc, *NVCC_FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    command += [str(source), "-o", os.devnull]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    name = f"{source.name} sm_{arch}"
    if result.returncode != 0:
        return result.stderr, [f"{name}: does not compile"]
    reports = parse_ptxas(result.stderr, arch)
    faults = [f"{name}: spills registers" for report in reports if report.spilled_bytes]
    faults += [f"{name}: ptxas {code}" for code in SERIALIZED if code in result.stderr]
    if not reports:
        faults.append(f"{name}: no kernel in ptxas' report")
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
    faults = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for text, found in pool.map(lambda job: compile_one(cuda, *job), jobs):
            print(text)
            faults += found
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(jobs)} compilations for nvcc {cuda.version}, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
