"""The shortest way to a kernel: calls without options, where checks and bookkeeping would take longest.

What it takes it takes as the general way would; anything else it leaves to that way, errors included.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._validate import FLOAT_DTYPES, MOST_KEYS, lengths_lie_within
from crossmodal.dispatch import HAS_CUDA_KERNELS, MOST_CUDA_HEAD_DIM, is_too_old, is_traced, needs_gradient
from crossmodal.ops._apply import apply
from crossmodal.ops._fakes import order_of
from crossmodal.ops._fusion import (
    Layout,
    Operands,
    ScoreOptions,
    accumulator,
    differentiable_gradients,
    differentiates_again,
    evaluate,
    only_needed,
)
from crossmodal.ops._precision import allows_tf32
from crossmodal.types import FusionResult, Source

_TERM_DTYPES = (torch.bool, *FLOAT_DTYPES)
_TENSORS = (Tensor, torch.nn.Parameter)  # a subclass may mean anything


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    scale: float | None,
    is_causal: bool,
) -> Tensor | None:
    """The output, or None where the call is not plain: 4-D tensors of one dtype and device, nothing transformed."""
    if not are_plain(query, key, value):
        return None
    batch, heads, rows, head_dim = query.shape
    key_batch, key_heads, keys, key_dim = key.shape
    value_batch, value_heads, values, head_dim_v = value.shape
    if (
        not batch == key_batch == value_batch
        or not heads == key_heads == value_heads
        or keys != values
        or head_dim != key_dim
        or head_dim == 0
        or keys > MOST_KEYS
        or type(is_causal) is not bool
        or (query.is_cuda and max(head_dim, head_dim_v) > MOST_CUDA_HEAD_DIM)
    ):
        return None
    scale = _plain_scale(scale, head_dim)
    if scale is None:
        return None
    allow_tf32 = allows_tf32(query)
    if attn_mask is None and key_lengths is None:
        if needs_gradient((query, key, value)):
            out: Tensor = apply(PlainFunction, query, key, value, scale, is_causal, allow_tf32)
            return out
        return torch.ops.crossmodal.attention_plain.default(query, key, value, scale, is_causal, allow_tf32)

    if attn_mask is not None and not _is_plain_mask(attn_mask, (batch, heads, rows, keys), query.device):
        return None
    if key_lengths is not None and not _are_plain_lengths(key_lengths, batch, keys, query.device):
        return None
    terms = [] if attn_mask is None else [attn_mask]
    layout = _layout(scale, is_causal, [key_lengths], has_term=attn_mask is not None, allow_tf32=allow_tf32)
    return evaluate(layout, Operands(query, [key], [value], terms, None, [key_lengths], None, None))[0]


def plain_fuse(
    query: Tensor, sources: Sequence[Source | None], scale: float | None, return_lse: bool, return_mass: bool
) -> FusionResult | None:
    """The result, or None where the call is not plain: each source on the CPU, with lengths at most."""
    if type(sources) not in (list, tuple) or not sources:
        return None
    keys, values, lengths = [], [], []
    for source in sources:
        if type(source) is not Source or source.mask is not None or source.bias is not None:
            return None
        keys.append(source.key)
        values.append(source.value)
        lengths.append(source.lengths)
    if not are_plain(query, *keys, *values) or not query.is_cpu:
        return None
    batch, heads, _, head_dim = query.shape
    head_dim_v = values[0].shape[3]
    if head_dim == 0 or sum(key.shape[2] for key in keys) > MOST_KEYS:
        return None
    for key, value, length in zip(keys, values, lengths, strict=True):
        count = key.shape[2]
        if key.shape != (batch, heads, count, head_dim) or value.shape != (batch, heads, count, head_dim_v):
            return None
        if length is not None and not _are_plain_lengths(length, batch, count, query.device):
            return None
    scale = _plain_scale(scale, head_dim)
    if scale is None:
        return None

    layout = _layout(scale, False, lengths, return_mass=bool(return_mass))
    out, lse, mass = evaluate(layout, Operands(query, keys, values, [], None, lengths, None, None))
    return FusionResult(out, lse if return_lse else None, mass if return_mass else None)


def are_plain_weights(weights: Tensor, values: Tensor, lengths: Tensor | None, mask: Tensor | None) -> bool:
    """Whether weights or scores and their values can go to a kernel as they are."""
    if lengths is not None or mask is not None or not are_plain(weights, values):
        return False
    return weights.shape[:2] == values.shape[:2] and weights.shape[3] == values.shape[2]


def are_plain(main: Tensor, *others: Tensor) -> bool:
    """4-D tensors of one dtype and of one device that has kernels, which nothing compiles, transforms or casts."""
    if torch.compiler.is_compiling() or type(main) not in _TENSORS:
        return False
    dtype, device = main.dtype, main.device
    if main.dim() != 4 or dtype not in FLOAT_DTYPES or main.layout is not torch.strided:
        return False
    if not (main.is_cpu or (main.is_cuda and HAS_CUDA_KERNELS and not is_too_old(device))):
        return False
    for tensor in others:
        if type(tensor) not in _TENSORS or tensor.dim() != 4 or tensor.layout is not torch.strided:
            return False
        if tensor.dtype is not dtype or tensor.device != device:
            return False
    return nothing_transforms(device.type)


def nothing_transforms(device: str) -> bool:
    """Whether what runs is neither compiled or traced, nor cast on this type of device, nor transformed by
    `torch.func`."""
    if torch.compiler.is_compiling() or is_traced() or torch.is_autocast_enabled(device):
        return False
    return torch.autograd.forward_ad._current_level < 0 and torch._C._functorch.maybe_current_level() is None


def are_plain_on_cpu(*tensors: Tensor) -> bool:
    """Dense tensors of one dtype on the CPU, which nothing compiles, traces, transforms or casts."""
    if not nothing_transforms("cpu"):
        return False
    dtype = tensors[0].dtype
    return all(type(t) in _TENSORS and t.is_cpu and t.dtype is dtype and not t.is_nested for t in tensors)


def are_recorded(*tensors: Tensor) -> bool:
    """Whether autograd follows what is computed of them, and may keep them all."""
    return needs_gradient(tensors) and not any(t.is_inference() for t in tensors)


def _is_plain_mask(mask: Tensor, full: tuple[int, ...], device: torch.device) -> bool:
    return (
        type(mask) is Tensor
        and mask.dtype in _TERM_DTYPES
        and mask.dim() == 4
        and mask.layout is torch.strided
        and mask.device == device
        and all(n == m or n == 1 for n, m in zip(mask.shape, full, strict=True))
    )


def _are_plain_lengths(lengths: Tensor, batch: int, limit: int, device: torch.device) -> bool:
    return (
        type(lengths) is Tensor
        and lengths.dtype in (torch.int64, torch.int32)
        and lengths.shape == (batch,)
        and lengths.device == device
        and (batch == 0 or not lengths.is_cpu or lengths_lie_within(lengths, limit))
    )


def _plain_scale(scale: float | None, head_dim: int) -> float | None:
    """The factor of scores, or None for one that has to be checked."""
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    return scale if type(scale) is float and math.isfinite(scale) else None


def _layout(
    scale: float,
    is_causal: bool,
    lengths: Sequence[Tensor | None],
    *,
    has_term: bool = False,
    return_mass: bool = False,
    allow_tf32: bool = False,
) -> Layout:
    return Layout(
        has_lengths=tuple(length is not None for length in lengths),
        term_sources=(0,) if has_term else (),
        has_sink=False,
        has_query_lengths=False,
        has_seed=False,
        options=ScoreOptions(scale, window=(-1, 0 if is_causal else -1), allow_tf32=allow_tf32),
        return_mass=return_mass,
    )


class PlainFunction(torch.autograd.Function):
    """Compiled forward and backward of one source without options; it is never called under a transform."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool, allow_tf32: bool
    ) -> Tensor:
        options = scale, is_causal, allow_tf32
        out, statistics = torch.ops.crossmodal.attention_plain_fwd.default(query, key, value, *options)
        ctx.save_for_backward(query, key, value, out, statistics)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, statistics = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if not differentiates_again():
            gradients = torch.ops.crossmodal.attention_plain_bwd.default(
                dout, query, key, value, out, statistics, *ctx.options, *needs
            )
            return (*only_needed(gradients, needs), None, None, None)
        scale, is_causal, allow_tf32 = ctx.options
        layout = _layout(scale, is_causal, [None], allow_tf32=allow_tf32)
        x = Operands(query, [key], [value], [], None, [None], None, None)
        no_mass = statistics.new_empty(0)
        gradients = differentiable_gradients(layout, x, needs, (dout, None, None), out, statistics, no_mass)
        return (*gradients, None, None, None)


@torch.library.register_fake("crossmodal::attention_plain")
def _attention_plain_fake(query, key, value, *options):  # type: ignore[no-untyped-def]
    return order_of(query, query.shape[2], value.shape[3])


@torch.library.register_fake("crossmodal::attention_plain_fwd")
def _attention_plain_fwd_fake(query, key, value, *options):  # type: ignore[no-untyped-def]
    rows = query.shape[:3].numel()
    statistics = query.new_empty((2, rows), dtype=accumulator(query.dtype))
    return order_of(query, query.shape[2], value.shape[3]), statistics


@torch.library.register_fake("crossmodal::attention_plain_bwd")
def _attention_plain_bwd_fake(dout, query, key, value, out, statistics, scale, is_causal, allow_tf32, *wants):  # type: ignore[no-untyped-def]
    tensors = (query, key, value)
    return tuple(
        order_of(t, t.shape[2], t.shape[3]) if wanted else t.new_empty((0,))
        for t, wanted in zip(tensors, wants, strict=True)
    )
