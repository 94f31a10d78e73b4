"""The shortest way to the kernel: attention with a mask or lengths at most, where checks would take longest.

What it takes it takes as the general way would; anything else it leaves to that way, errors included.
"""

import math

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._validate import FLOAT_DTYPES, MOST_KEYS, lengths_lie_within
from crossmodal.dispatch import HAS_CUDA_KERNELS, most_cuda_head_dim
from crossmodal.ops._apply import apply
from crossmodal.ops._fakes import order_of
from crossmodal.ops._fusion import FusionFunction, Layout, Operands, ScoreOptions, call_forward

_operator = torch.ops.crossmodal.attention_plain.default
_TERM_DTYPES = (torch.bool, *FLOAT_DTYPES)


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
    if torch.compiler.is_compiling() or not type(query) is type(key) is type(value) is Tensor:
        return None
    dtype, device = query.dtype, query.device
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or dtype not in FLOAT_DTYPES:
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
        or not dtype == key.dtype == value.dtype
        or not device == key.device == value.device
        or not (
            query.is_cpu
            or (query.is_cuda and HAS_CUDA_KERNELS and max(head_dim, head_dim_v) <= most_cuda_head_dim(dtype))
        )
    ):
        return None
    if keys > MOST_KEYS or type(is_causal) is not bool:
        return None
    if not query.layout is key.layout is value.layout is torch.strided:
        return None
    if torch.is_autocast_enabled(device.type) or torch.autograd.forward_ad._current_level >= 0:
        return None
    if torch._C._functorch.maybe_current_level() is not None:
        return None
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    elif type(scale) is not float or not math.isfinite(scale):
        return None
    tensors = [query, key, value]
    if attn_mask is not None:
        if not _is_plain_mask(attn_mask, (batch, heads, rows, keys), device):
            return None
        tensors.append(attn_mask)
    if key_lengths is not None and not _are_plain_lengths(key_lengths, batch, keys, device):
        return None

    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not differentiates and attn_mask is None and key_lengths is None:
        return _operator(query, key, value, scale, is_causal)
    layout = Layout(
        has_lengths=(key_lengths is not None,),
        term_sources=() if attn_mask is None else (0,),
        has_sink=False,
        has_query_lengths=False,
        has_seed=False,
        options=ScoreOptions(scale, window=(-1, 0 if is_causal else -1)),
        return_mass=False,
    )
    if differentiates:
        if key_lengths is not None:
            tensors.append(key_lengths)
        out: Tensor = apply(FusionFunction, layout, *tensors)[0]
        return out
    operands = Operands(query, [key], [value], tensors[3:], None, [key_lengths], None, None)
    return call_forward(layout, operands, for_backward=False)[0]


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


@torch.library.register_fake("crossmodal::attention_plain")
def _attention_plain_fake(query, key, value, scale, is_causal):  # type: ignore[no-untyped-def]
    return order_of(query, query.shape[2], value.shape[3])
