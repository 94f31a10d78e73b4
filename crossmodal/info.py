"""What `crossmodal info` tells: the build, the machine, and what of it is in use."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from crossmodal._library import build_info


def collect_info() -> dict[str, Any]:
    """:func:`crossmodal.build_info` and, beside it, ``python``, ``platform``, ``cpu`` and ``devices``."""
    return {
        **build_info(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "cores": _usable_cores(), "threads": torch.get_num_threads()},
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def as_json(info: dict[str, Any]) -> str:
    """One JSON object."""
    return json.dumps(info, indent=2)


def as_text(info: dict[str, Any]) -> str:
    """One line per fact."""
    cuda = info["cuda"]
    cpu = info["cpu"]
    facts = {
        "crossmodal": info["version"],
        "library": info["library"],
        "introspection": info["introspection"],
        "built with": f"{info['compiler']}, for torch >= {info['torch_target']}",
        "sanitizer": info["sanitizer"],
        "CUDA": f"{cuda['version']}, for sm_{' sm_'.join(cuda['archs'])}" if cuda else "not built",
        "torch": info["torch"],
        "python": f"{info['python']} on {info['platform']}",
        "CPU": f"{cpu['model']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads",
        "instruction sets": ", ".join(_describe_isa(isa) for isa in info["isas"]),
        "GPUs": ", ".join(info["devices"]) or "none that torch can use",
    }
    return "\n".join(f"{name:<18}{fact}" for name, fact in facts.items() if fact)


def _describe_isa(isa: dict[str, Any]) -> str:
    if isa["active"]:
        return f"{isa['name']} (in use)"
    if not isa["compiled"]:
        return f"{isa['name']} (not built)"
    return isa["name"] if isa["supported"] else f"{isa['name']} (not on this CPU)"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
