"""The shortest way to the kernel: attention without a gradient and without options, where checks would take longest.

What it takes it takes as the general way would; anything else it leaves to that way, errors included.
"""

import math

import torch
from torch import Tensor

from crossmodal import _library  # noqa: F401  registers torch.ops.crossmodal
from crossmodal._validate import FLOAT_DTYPES, MOST_KEYS
from crossmodal.dispatch import HAS_CUDA_KERNELS, most_cuda_head_dim
from crossmodal.ops._fakes import order_of

_operator = torch.ops.crossmodal.attention_plain.default


def plain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None, is_causal: bool) -> Tensor | None:
    """The output, or None where the call is not plain: 4-D tensors of one dtype and device, nothing transformed."""
    if torch.compiler.is_compiling() or not type(query) is type(key) is type(value) is Tensor:
        return None
    dtype = query.dtype
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or dtype not in FLOAT_DTYPES:
        return None
    batch, heads, _, head_dim = query.shape
    key_batch, key_heads, keys, key_dim = key.shape
    value_batch, value_heads, values, _ = value.shape
    if (
        not batch == key_batch == value_batch
        or not heads == key_heads == value_heads
        or keys != values
        or head_dim != key_dim
        or head_dim == 0
        or not dtype == key.dtype == value.dtype
        or not query.device == key.device == value.device
        or not (
            query.is_cpu
            or (query.is_cuda and HAS_CUDA_KERNELS and max(head_dim, value.shape[3]) <= most_cuda_head_dim(dtype))
        )
    ):
        return None
    if keys > MOST_KEYS or type(is_causal) is not bool:
        return None
    if not query.layout is key.layout is value.layout is torch.strided:
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if torch.is_autocast_enabled(query.device.type) or torch.autograd.forward_ad._current_level >= 0:
        return None
    if torch._C._functorch.maybe_current_level() is not None:
        return None
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    elif type(scale) is not float or not math.isfinite(scale):
        return None
    return _operator(query, key, value, scale, is_causal)


@torch.library.register_fake("crossmodal::attention_plain")
def _attention_plain_fake(query, key, value, scale, is_causal):  # type: ignore[no-untyped-def]
    return order_of(query, query.shape[2], value.shape[3])
