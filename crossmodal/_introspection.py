"""What libcrossmodal.so tells about itself, read with ctypes: `_native` for Pythons that lack it.

The functions are those of `_native.pyi`, of the same names, arguments and results.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

# The order of the enumerators in csrc/core/dtype.h.
_DTYPES = ("float32", "bfloat16", "float16", "float64")

# By its bare name the linker finds the library that the process has loaded, wherever that lies.
_library = ctypes.CDLL("libcrossmodal.so")


def _text(function: str, *arguments: Any) -> str | None:
    """Calls a C function that returns a text or null."""
    foreign = getattr(_library, function)
    foreign.restype = ctypes.c_char_p
    result: bytes | None = foreign(*arguments)
    return None if result is None else result.decode()


def _json(function: str, *arguments: Any) -> Any:
    return json.loads(_text(function, *arguments) or "null")


def _number(function: str, *arguments: Any) -> float:
    foreign = getattr(_library, function)
    foreign.restype = ctypes.c_double
    result: float = foreign(*arguments)
    return result


def _dtype_number(dtype: str) -> ctypes.c_int:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return ctypes.c_int(_DTYPES.index(dtype))


def build_info() -> dict[str, Any]:
    return _json("crossmodal_build_info")


def cpu_isas() -> list[dict[str, Any]]:
    return _json("crossmodal_cpu_isas")


def active_isa() -> str:
    return next(isa["name"] for isa in cpu_isas() if isa["active"])


def select_isa(name: str) -> None:
    if error := _text("crossmodal_select_isa", ctypes.c_char_p(name.encode())):
        raise ValueError(error)


def isa_environment_error() -> str | None:
    return _text("crossmodal_isa_environment_error")


def attention_plan(
    dtype: str,
    batch: int,
    num_heads: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int,
    head_dim_v: int | None = None,
    is_causal: bool = False,
) -> dict[str, Any]:
    number = _dtype_number(dtype)
    sizes = (batch, num_heads, seqlen_q, seqlen_k, head_dim)
    return _json(
        "crossmodal_attention_plan",
        number,
        *(ctypes.c_int64(size) for size in sizes),
        ctypes.c_int64(head_dim if head_dim_v is None else head_dim_v),
        ctypes.c_int(is_causal),
    )


def cuda_attention_plan(
    dtype: str,
    batch: int,
    num_heads: int,
    num_heads_k: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int,
    head_dim_v: int,
    is_plain: bool,
    is_exact: bool,
    is_ragged: bool,
    allow_tf32: bool,
    arch: int,
    multiprocessors: int,
    shared_bytes: int,
    l2_bytes: int,
) -> dict[str, Any]:
    sizes = (batch, num_heads, num_heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v)
    return _json(
        "crossmodal_cuda_attention_plan",
        _dtype_number(dtype),
        *(ctypes.c_int64(size) for size in sizes),
        *(ctypes.c_int(number) for number in (is_plain, is_exact, is_ragged, allow_tf32, arch, multiprocessors)),
        ctypes.c_int64(shared_bytes),
        ctypes.c_int64(l2_bytes),
    )


def measure_peak(dtype: str) -> float:
    return _number("crossmodal_measure_peak", _dtype_number(dtype))


def measure_bandwidth(num_bytes: int) -> float:
    if num_bytes < 1:
        raise ValueError(f"num_bytes must be positive, got {num_bytes}")
    result = _number("crossmodal_measure_bandwidth", ctypes.c_int64(num_bytes))
    if result == 0:
        raise MemoryError
    return result
