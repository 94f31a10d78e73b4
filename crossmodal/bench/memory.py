"""Memory of a call at its peak, as the operating system sees it: with the scratch that torch does not know of."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # proc(5): "reset the peak resident set size"


def peak_mib(call: Callable[[], Any]) -> float | None:
    """MiB by which the resident memory grows during the call; None where the system does not tell."""
    try:
        _give_back_free_memory()
        _RESET.write_text(_FORGET_PEAK)
        before = _kib("VmRSS")
        result = call()
        peak = _kib("VmHWM")
    except (OSError, AttributeError, LookupError):
        return None
    del result
    return max(0, peak - before) / 1024


def _give_back_free_memory() -> None:
    """What earlier calls freed and the allocator kept would serve this one without showing."""
    ctypes.CDLL(None).malloc_trim(0)


def _kib(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"{_STATUS} has no {field}")
    return int(found[1])
