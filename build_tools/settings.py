"""What one build is made with: compilers, torch's headers, CUDA, a sanitizer.

Environment:
    CXX                     the C++ compiler (g++)
    MAX_JOBS                compilers run at once (all cores)
    CROSSMODAL_CUDA         auto: CUDA kernels when nvcc is there; 0: never; 1: or fail
    CROSSMODAL_CUDA_ARCHS   GPU architectures ("80;90a")
    CROSSMODAL_SANITIZE     address, undefined or thread: an instrumented build
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA_MODES = ("auto", "0", "1")
SANITIZERS = ("address", "undefined", "thread")
DEFAULT_CUDA_ARCHS = "80;90a"
_OLDEST_ARCH = 80  # whose instructions all kernels are made of


def build_dir(sanitizer: str | None) -> Path:
    """Where ninja works, relative to the root: not in pip's temporary folder, to be there again."""
    return Path("build", f"ninja-{sanitizer}" if sanitizer else "ninja")


class BuildError(Exception):
    """The environment does not allow the build that was asked for; the text says what to do."""


@dataclass(frozen=True)
class CudaToolkit:
    nvcc: str
    version: str
    library_dir: Path
    archs: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    cxx: str
    compiler: str
    machine: str
    torch_include: Path
    cuda: CudaToolkit | None
    sanitizer: str | None

    @classmethod
    def from_environment(cls) -> Settings:
        cxx = os.environ.get("CXX", "g++")
        return cls(
            cxx=cxx,
            compiler=_compiler_name(cxx),
            machine=platform.machine(),
            torch_include=_torch_include(),
            cuda=find_cuda(),
            sanitizer=_one_of("CROSSMODAL_SANITIZE", ("", *SANITIZERS)) or None,
        )


def find_cuda() -> CudaToolkit | None:
    mode = _one_of("CROSSMODAL_CUDA", CUDA_MODES)
    if mode == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        if mode == "1":
            raise BuildError(
                "CROSSMODAL_CUDA=1 asks for CUDA kernels, but there is no nvcc on PATH or in "
                "$CUDA_HOME/bin; install the CUDA toolkit or set CROSSMODAL_CUDA=0"
            )
        return None
    archs = os.environ.get("CROSSMODAL_CUDA_ARCHS", DEFAULT_CUDA_ARCHS).split(";")
    if not all(re.fullmatch(r"\d+[af]?", arch) and int(arch.rstrip("af")) >= _OLDEST_ARCH for arch in archs):
        wanted = f"CROSSMODAL_CUDA_ARCHS must look like {DEFAULT_CUDA_ARCHS!r}, {_OLDEST_ARCH} or newer"
        raise BuildError(f"{wanted}, got {';'.join(archs)!r}")
    return CudaToolkit(
        nvcc=nvcc,
        version=_nvcc_version(nvcc),
        library_dir=_cudart_dir(nvcc),
        archs=tuple(archs),
    )


def _one_of(variable: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(variable, choices[0])
    if value not in choices:
        allowed = ", ".join(choice for choice in choices if choice)
        raise BuildError(f"{variable} must be one of {allowed}, got {value!r}")
    return value


def _compiler_name(cxx: str) -> str:
    try:
        output = subprocess.check_output([cxx, "--version"], text=True)
    except FileNotFoundError:
        raise BuildError(f"there is no C++ compiler {cxx!r}; install g++ or set CXX") from None
    return output.splitlines()[0]


def _torch_include() -> Path:
    # Only headers are needed: finding the package without importing it saves the seconds that
    # `import torch` takes.
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError('torch\'s headers are needed to build: pip install "torch==2.13.0"')
    return Path(spec.submodule_search_locations[0]) / "include"


def _nvcc_version(nvcc: str) -> str:
    output = subprocess.check_output([nvcc, "--version"], text=True)
    match = re.search(r"release (\d+\.\d+)", output)
    return match[1] if match else "unknown"


def _cudart_dir(nvcc: str) -> Path:
    # nvcc on PATH may be a wrapper script, so its own location says nothing: it has to be asked.
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "unused.cu"], capture_output=True, text=True).stderr
    for folder in re.findall(r'"-L([^"]+)"', dry_run):
        if Path(folder, "libcudart_static.a").exists():
            return Path(folder).resolve()
    raise BuildError(f"{nvcc} names no folder that holds libcudart_static.a")
