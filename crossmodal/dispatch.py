"""What happens when no kernel fits: the reference answers, and says why, or strict mode refuses."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from crossmodal._problem import FusionProblem

logger = logging.getLogger("crossmodal")

# A module-level flag, not a ContextVar: Dynamo can guard on it.
_strict = os.environ.get("CROSSMODAL_STRICT", "0") not in ("", "0")
_told: set[str] = set()

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@contextmanager
def strict() -> Iterator[None]:
    """Within it, a call that no kernel can take raises RuntimeError instead of falling back to plain torch.

    The environment variable ``CROSSMODAL_STRICT=1`` does the same for a whole process.
    """
    global _strict
    before = _strict
    _strict = True
    try:
        yield
    finally:
        _strict = before


def fall_back(op: str, reasons: Sequence[str]) -> None:
    """Notes that ``op`` goes to the reference: an error in strict mode, else logged once per reason."""
    if _strict:
        raise RuntimeError(f"crossmodal.{op}: no kernel takes this call in strict mode: {'; '.join(reasons)}")
    if torch.compiler.is_compiling():
        return  # a log call would break the graph
    for reason in reasons:
        if reason not in _told:
            _told.add(reason)
            logger.warning("%s runs in plain torch: %s", op, reason)


def fusion_refusals(problem: FusionProblem) -> list[str]:
    """Why no kernel takes this problem; empty if one does."""
    reasons = tensor_refusals(fusion_tensors(problem))
    if any(source.key.shape[1] != problem.num_heads for source in problem.sources):
        reasons.append("grouped-query attention has no kernel yet")
    if problem.window_size != (-1, -1):
        reasons.append("window_size has no kernel yet")
    if problem.is_causal and problem.causal_align != "upper_left":
        reasons.append("causal_align='lower_right' has no kernel yet")
    if problem.softcap > 0.0:
        reasons.append("softcap has no kernel yet")
    if problem.sink is not None:
        reasons.append("sink has no kernel yet")
    if problem.query_lengths is not None:
        reasons.append("query_lengths has no kernel yet")
    if problem.dropout_p > 0.0:
        reasons.append("dropout has no kernel yet")
    return reasons


def tensor_refusals(tensors: Sequence[Tensor]) -> list[str]:
    """Reasons that lie in the tensors themselves: device, dtype, function transforms. The first is the main operand."""
    reasons = []
    first = tensors[0]
    if first.device.type != "cpu":
        reasons.append(f"no kernel for device type {first.device.type!r} yet")
    if first.dtype not in _KERNEL_DTYPES:
        reasons.append(f"no kernel for {first.dtype} yet")
    if not torch.compiler.is_compiling():
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
            reasons.append("torch.func transforms run through plain torch")
        elif torch.autograd.forward_ad._current_level >= 0:
            # A custom operator has no forward-mode rule: its tangents would be silent zeros.
            reasons.append("forward-mode differentiation runs through plain torch")
    return reasons


def fusion_tensors(problem: FusionProblem) -> list[Tensor]:
    """Every tensor of a problem, query first."""
    tensors = [problem.query]
    for source in problem.sources:
        tensors += [source.key, source.value, *source.terms]
        if source.lengths is not None:
            tensors.append(source.lengths)
    tensors += [t for t in (problem.sink, problem.query_lengths, problem.dropout_seed) if t is not None]
    return tensors


def needs_gradient(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
