"""What happens when no kernel fits: the reference answers, and says why, or strict mode refuses."""

import functools
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from crossmodal import _library
from crossmodal._problem import FusionProblem, VarlenProblem

logger = logging.getLogger("crossmodal")

HAS_CUDA_KERNELS = _library.introspection.build_info()["cuda"] is not None
# What the CUDA kernels take, as csrc/cuda/attention.cu and problem.h have it.
MOST_CUDA_SOURCES = 8
MOST_CUDA_HEAD_DIM = 256
_OLDEST_GPU = (8, 0)  # whose instructions all kernels are made of

# A module-level flag, not a ContextVar: Dynamo can guard on it.
_always_strict = os.environ.get("CROSSMODAL_STRICT", "").lower() not in ("", "0", "false", "no", "off")
_strict = _always_strict
_lock = threading.Lock()
_users = 0
_told: set[str] = set()


@contextmanager
def strict() -> Iterator[None]:
    """Within it, a call that no kernel can take raises RuntimeError instead of falling back to plain torch.

    Holds for all threads, until the last that entered it leaves. The environment variable ``CROSSMODAL_STRICT=1`` does
    the same for a whole process.
    """
    _count_strict(1)
    try:
        yield
    finally:
        _count_strict(-1)


def _count_strict(change: int) -> None:
    global _users, _strict
    # Dynamo knows no locks. Compiled code enters and leaves in one piece: to others the numbers stay as they are.
    with nullcontext() if torch.compiler.is_compiling() else _lock:
        _users += change
        _strict = _always_strict or _users > 0


def fall_back(op: str, reasons: Sequence[str]) -> None:
    """Notes that ``op`` goes to the reference: an error in strict mode, else logged once per reason, whatever numbers
    stand in it."""
    if _strict:
        raise RuntimeError(f"crossmodal.{op}: no kernel takes this call in strict mode: {'; '.join(reasons)}")
    if torch.compiler.is_compiling():
        return  # a log call would break the graph
    for reason in reasons:
        kind = re.sub(r"(?<![A-Za-z_\d])\d+(, )?", "", reason)  # sizes, of which there may be any number
        if kind not in _told:
            _told.add(kind)
            logger.warning("%s runs in plain torch: %s", op, reason)


def fusion_refusals(problem: FusionProblem) -> list[str]:
    """Why no kernel takes this problem; empty if one does."""
    tensors = fusion_tensors(problem)
    reasons = tensor_refusals(tensors)
    reasons += width_refusals(problem.query, problem.query.shape[-1], problem.head_dim_v)
    if problem.query.is_cuda and len(problem.sources) > MOST_CUDA_SOURCES:
        reasons.append(f"CUDA kernels take {MOST_CUDA_SOURCES} sources at most, got {len(problem.sources)}")
    if problem.dropout_p > 0.0 and any(map(is_transformed, tensors)):
        # Its mask depends on a sample's place in the batch, which vmap's folding would change.
        reasons.append("dropout under torch.func transforms runs through plain torch")
    return reasons


def second_derivative_refusals(query: Tensor, dropout_p: float) -> list[str]:
    """Why the gradient of an attention's gradient goes through the reference; empty if a kernel takes it."""
    reasons = []
    if not query.is_cpu:
        reasons.append("only the CPU has kernels for them")
    if query.shape[-1] == 0:
        reasons.append("no kernel without features")
    if torch.autograd.forward_ad._current_level >= 0:
        reasons.append("forward-mode differentiation runs through plain torch")
    if dropout_p > 0.0 and not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None:
        reasons.append("dropout under torch.func transforms runs through plain torch")
    return reasons


def varlen_refusals(problem: VarlenProblem) -> list[str]:
    """The same for packed sequences."""
    widths = problem.query.shape[-1], problem.value.shape[-1]
    return tensor_refusals([problem.query]) + width_refusals(problem.query, *widths)


def width_refusals(operand: Tensor, head_dim: int, head_dim_v: int) -> list[str]:
    """Reasons that lie in the widths of the products and of the values, on the device of an operand."""
    if not operand.is_cuda:
        return []
    widths = {"head_dim": head_dim, "head_dim of values": head_dim_v}
    return [
        f"CUDA kernels take a {name} of {MOST_CUDA_HEAD_DIM} at most, got {width}"
        for name, width in widths.items()
        if width > MOST_CUDA_HEAD_DIM
    ]


def tensor_refusals(tensors: Sequence[Tensor]) -> list[str]:
    """Reasons that lie in the tensors themselves: device, forward mode. The first is the main operand."""
    reasons = []
    if is_traced():
        reasons.append("torch.jit.trace records plain torch, which can be saved")
    device = tensors[0].device.type
    if device == "cuda" and not HAS_CUDA_KERNELS:
        reasons.append("this build has no CUDA kernels")
    elif device == "cuda" and not torch.compiler.is_compiling() and is_too_old(tensors[0].device):
        reasons.append("CUDA kernels need a GPU from sm_80 on")
    elif device not in ("cpu", "cuda"):
        reasons.append(f"no kernel for device type {device!r} yet")
    if torch.autograd.forward_ad._current_level >= 0:
        # A custom operator has no forward-mode rule: its tangents would be silent zeros.
        reasons.append("forward-mode differentiation runs through plain torch")
    return reasons


def is_traced() -> bool:
    """Whether torch.jit.trace is at work."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


@functools.cache
def is_too_old(gpu: torch.device) -> bool:
    """Whether a GPU lacks the instructions that CUDA kernels are made of."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(gpu) < _OLDEST_GPU


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of torch.func is at work on the tensor."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


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
