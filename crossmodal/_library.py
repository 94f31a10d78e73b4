"""Loads libcrossmodal.so, once, when this module is imported.

The library registers the operators (`torch.ops.crossmodal.*`) as it is loaded, and a second copy
of it would register them twice, which ends the process. `CROSSMODAL_LIBRARY` names another file to
load instead of the one beside this package, such as a sanitizer build.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NAME = "libcrossmodal.so"


def _load() -> Path:
    path = Path(os.environ.get("CROSSMODAL_LIBRARY") or Path(__file__).with_name(NAME)).resolve()
    loaded = _loaded_already()
    if loaded is None:
        if not path.exists():
            raise ImportError(
                f"crossmodal's compiled library is not at {path}; build it with `pip install .`, "
                "or in a checkout with `python setup.py build_ext --inplace`"
            )
        torch.ops.load_library(path)
    elif loaded != path:
        raise ImportError(
            f"crossmodal's library is already loaded from {loaded}, loading it again from {path} "
            "would register its operators twice"
        )
    return path


def _loaded_already() -> Path | None:
    """Where this process has the library from, whoever loaded it: Python, ctypes or C++."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for line in maps.splitlines():
        # A library that was rebuilt since it was loaded is listed as deleted, yet it is in use.
        mapped = line.removesuffix(" (deleted)")
        if mapped.endswith(f"/{NAME}"):
            return Path(mapped[mapped.index("/") :])
    return None


def _introspection() -> ModuleType:
    try:
        return importlib.import_module("crossmodal._native")
    except ImportError:  # it is built for one Python version, the library is for all
        return importlib.import_module("crossmodal._introspection")


path = _load()
introspection = _introspection()

if _error := introspection.isa_environment_error():
    raise ValueError(_error)


def build_info() -> dict[str, Any]:
    """How the library was built and what it found here: plain data, ready for JSON."""
    return {
        **introspection.build_info(),
        "torch": torch.__version__,
        "isas": cpu_isas(),
        "active_isa": active_isa(),
        "gpu_count": torch.cuda.device_count(),
        "library": str(path),
        "introspection": introspection.__name__,
    }


def cpu_isas() -> list[dict[str, Any]]:
    """Instruction sets, best first: name, compiled, supported, active."""
    return introspection.cpu_isas()


def active_isa() -> str:
    """Name of the instruction set that CPU kernels use now."""
    return introspection.active_isa()


def select_isa(name: str) -> None:
    """Makes the named instruction set the active one, for all threads."""
    introspection.select_isa(name)


def measure_peak(dtype: str) -> float:
    """GFLOP/s of multiply-adds out of registers, on one thread with the active instruction set."""
    return introspection.measure_peak(dtype)


def measure_bandwidth(num_bytes: int) -> float:
    """GB/s at which one thread reads a buffer of this size over and over."""
    return introspection.measure_bandwidth(num_bytes)


def attention_plan(*arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The kernel that an attention problem would run; arguments as in `_native.pyi`."""
    return introspection.attention_plan(*arguments, **keywords)


def cuda_attention_plan(*arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The kernels that a GPU would run an attention problem with; arguments as in `_native.pyi`."""
    return introspection.cuda_attention_plan(*arguments, **keywords)
