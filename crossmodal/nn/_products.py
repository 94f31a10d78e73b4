"""Which library multiplies matrices faster here, found out once, and how oneDNN is reached."""

import os
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# Multiply-adds below which a product takes less than some 100 us: what differs is then the call, not the library.
WORTHWHILE = 4_000_000
# What oneDNN has to be ahead, above the scatter of the measurement, so that a process decides as the one before it; in
# the gradient of a weight, which then comes transposed and is copied where it is added up, by more.
AHEAD = 1.07
AHEAD_TRANSPOSED = 1.2


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight.T + bias`` by oneDNN; any strides, or a weight that :func:`as_packed` has packed."""
    return torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")


def weight_gradient(dout: Tensor, input: Tensor) -> Tensor:
    """``dout.T @ input`` for ``(rows, out_features)`` and ``(rows, in_features)``, by the faster library."""
    if dout.dtype != torch.float32 or _lead("weight gradient", torch.get_num_threads()) < AHEAD_TRANSPOSED:
        return dout.t() @ input
    # Computed as its transpose, in which input is what has to be brought into order: it has fewer features than dout.
    return onednn_linear(input.t(), dout.t(), None).t()


def onednn_leads(dtype: torch.dtype) -> bool:
    """Whether oneDNN's own operator is faster than torch; ``CROSSMODAL_LINEAR`` = "onednn" or "torch" decides instead.

    In float32 the BLAS is what it is measured against. bfloat16 is oneDNN's both ways, with a pass less in ours.
    """
    choice = os.environ.get("CROSSMODAL_LINEAR", "")
    if choice:
        if choice not in ("onednn", "torch"):
            raise ValueError(f'CROSSMODAL_LINEAR must be "onednn" or "torch", got {choice!r}')
        return choice == "onednn" and _is_there(dtype)
    return _is_there(dtype) and (dtype == torch.bfloat16 or lead() >= AHEAD)


def _is_there(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have oneDNN's products of a type, and nobody has switched them off."""
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return has_instructions(dtype)


def has_instructions(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies matrices of a dtype with instructions of this CPU.

    Where it does not, torch takes several times as long for products in half precision as for float32, and LSTMs fail.
    """
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    supported = name and getattr(torch.ops.mkldnn, name, None)
    return not supported or bool(supported())


def lead() -> float:
    """How many times as fast as the BLAS oneDNN is, with as many threads as there are now."""
    return _lead("linear", torch.get_num_threads())


@cache
def _lead(product: str, threads: int) -> float:
    if not _is_there(torch.float32):
        return 0.0
    generator = torch.Generator("cpu").manual_seed(0)  # torch's own must not notice
    # Modes that count or print operators must not notice, either.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _disable_current_modes():
        rows, weight, dout = (
            torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)
            for shape in ((512, 512), (1024, 512), (512, 1024))
        )
        if product == "linear":
            return _ratio(lambda: rows @ weight.t(), lambda: onednn_linear(rows, weight, None))
        return _ratio(lambda: dout.t() @ rows, lambda: onednn_linear(rows.t(), dout.t(), None).t())


def _ratio(slow: Callable[[], Tensor], fast: Callable[[], Tensor], repeats: int = 7) -> float:
    """Of the shortest times, taken in turns: what disturbs makes a run longer, never shorter."""
    # The time of other processes does not count, where one thread does everything.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    shortest = [float("inf"), float("inf")]
    for round_ in range(repeats + 1):
        for i, run in enumerate((slow, fast)):
            start = clock()
            run()
            if round_ > 0:  # the first brings code and memory in
                shortest[i] = min(shortest[i], clock() - start)
    return shortest[0] / shortest[1]
