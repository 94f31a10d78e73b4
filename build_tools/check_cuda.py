"""Reads what ptxas made of the CUDA kernels of a built library; needs no GPU and compiles nothing.

    python -m build_tools.check_cuda [library or object file...]

Fails when a kernel keeps anything in local memory, needs more registers than its occupancy is planned
with, or lacks the matrix instructions that it is made for: all of that is correct and several times
slower, which no test of results would notice. Needs cuobjdump: on PATH, in $CUDA_HOME/bin, or in the
package nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from build_tools.settings import ROOT, BuildError, find_cuda

LIBRARY = ROOT / "crossmodal" / "libcrossmodal.so"

# Registers of a thread, by what a kernel's name contains; the first that fits counts. 128 threads to a
# block: 168 leave room for three blocks on a multiprocessor, 255 for two. Weighted sums: three blocks of
# 7 warps, or four of 5.
REGISTER_CAPS = (
    (r"attention_fwd_kernel<MmaEngine<.*16>, (32|64), true>", 168),
    (r"row_sum_kernel<.*16>, 0, true>", 80),
    (r"row_sum_kernel<.*16>, 1, true>", 96),
    (r"row_products_kernel<.*16>", 80),
    (r"", 255),
)

MATRIX_INSTRUCTION = "mma.sync"
MATRIX_ENGINE = re.compile(r"MmaEngine|Tf32Engine")
# Kernels that take one of these engines for its numbers alone.
WITHOUT_PRODUCTS = re.compile(r"attention_(few|one)_|merge_")


@dataclass(frozen=True)
class Kernel:
    """One kernel as code of one architecture."""

    name: str
    arch: str
    registers: int
    local_bytes: int  # of a thread: spilled registers, arrays with an index

    @property
    def faults(self) -> list[str]:
        cap = next(cap for pattern, cap in REGISTER_CAPS if re.search(pattern, self.name))
        found = {
            f"keeps {self.local_bytes} bytes in local memory": self.local_bytes > 0,
            f"takes {self.registers} registers, more than {cap}": self.registers > cap,
        }
        return [f"{self.name} sm_{self.arch}: {fault}" for fault, is_there in found.items() if is_there]

    def __str__(self) -> str:
        memory = f"{self.local_bytes} bytes of LOCAL MEMORY" if self.local_bytes else "no local memory"
        return f"sm_{self.arch:4} {self.registers:3} registers, {memory}  {self.name}"


def readable(symbols: list[str]) -> list[str]:
    """Names of kernels with their template arguments, without namespaces and parameters."""
    text = subprocess.check_output(["c++filt"], input="\n".join(symbols), text=True)
    names = []
    for name in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|crossmodal::|cuda::|^void ", "", name)
        names.append(re.sub(r"\((bool|int|Along)\)", "", name).split("(")[0])
    return names


def parse_usage(text: str) -> list[Kernel]:
    """What `cuobjdump -res-usage` prints of every kernel of every architecture."""
    pattern = re.compile(
        r"^arch = sm_(?P<arch>\w+)|^ Function (?P<symbol>\w+):\s+"
        r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:\d+ LOCAL:(?P<local>\d+)",
        re.MULTILINE,
    )
    arch, kernels = "", []
    for match in pattern.finditer(text):
        arch = match["arch"] or arch
        if symbol := match["symbol"]:
            local_bytes = int(match["stack"]) + int(match["local"])
            kernels.append(Kernel(symbol, arch, int(match["registers"]), local_bytes))
    names = readable([kernel.name for kernel in kernels])
    return [replace(kernel, name=name) for kernel, name in zip(kernels, names, strict=True)]


def missing_instructions(ptx: str) -> list[str]:
    """Kernels that are made of matrix instructions and have none in their PTX, of which all code is made."""
    _, *parts = re.split(r"\.entry (\w+)", ptx)
    named = zip(readable(parts[::2]), parts[1::2], strict=True)
    return [
        f"{name}: no {MATRIX_INSTRUCTION}"
        for name, code in named
        if MATRIX_ENGINE.search(name) and not WITHOUT_PRODUCTS.search(name) and MATRIX_INSTRUCTION not in code
    ]


def find_cuobjdump() -> str | None:
    """cuobjdump, wherever there is one."""
    home = os.environ.get("CUDA_HOME")
    folders = [f"{home}/bin"] if home else []
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folders += map(str, sorted(Path(place).glob("*/bin")))
    found = (shutil.which("cuobjdump", path=path) for path in (None, *folders))
    return next((tool for tool in found if tool), None)


def dump(tool: str, option: str, file: str) -> str:
    result = subprocess.run([tool, option, file], capture_output=True, text=True)
    if result.returncode != 0:
        raise BuildError(f"cuobjdump {option}: {result.stderr.strip() or 'failed'}")
    return result.stdout


def main(arguments: list[str]) -> int:
    try:
        cuda = find_cuda()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if cuda is None and not arguments:
        print("no nvcc, or CROSSMODAL_CUDA=0: nothing checked")
        return 0
    tool = find_cuobjdump()
    if tool is None:
        print("there is no cuobjdump; pip install nvidia-cuda-cuobjdump", file=sys.stderr)
        return 1

    kernels: list[Kernel] = []
    faults: list[str] = []
    for file in arguments or [str(LIBRARY)]:
        try:
            kernels += parse_usage(dump(tool, "-res-usage", file))
            faults += missing_instructions(dump(tool, "-ptx", file))
        except BuildError as error:
            faults.append(f"{file}: {error}")
    if kernels and not arguments:  # a cap that no kernel is held to says nothing
        patterns = (pattern for pattern, _ in REGISTER_CAPS)
        unused = [pattern for pattern in patterns if not any(re.search(pattern, kernel.name) for kernel in kernels)]
        faults += [f"no kernel has a name like {pattern}" for pattern in unused]
    for kernel in kernels:
        print(kernel)
        faults += kernel.faults
    for fault in faults:
        print(fault, file=sys.stderr)
    archs = ", ".join(sorted({kernel.arch for kernel in kernels}))
    names = {kernel.name for kernel in kernels}
    print(f"{len(names)} kernels for {archs or 'no architecture'}: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
