"""torch.nn's meaning of masks to ours, in one place: there True = ignore, here True = attend."""

import torch
from torch import Tensor

from crossmodal._validate import check_device, check_tensor


def key_padding_term(mask: Tensor | None, batch: int, seqlen_k: int, like: Tensor) -> Tensor | None:
    """``key_padding_mask`` ``(batch, seqlen_k)``, True = ignore or float = added, as ``(batch, 1, 1, seqlen_k)``."""
    if mask is None:
        return None
    _check_mask("key_padding_mask", mask, like)
    if tuple(mask.shape) != (batch, seqlen_k):
        raise ValueError(
            f"key_padding_mask must have shape (batch, seqlen_k) = ({batch}, {seqlen_k}), got {tuple(mask.shape)}"
        )
    return _where_to_attend(mask)[:, None, None, :]


def attention_term(
    mask: Tensor | None, batch: int, num_heads: int, seqlen_q: int, seqlen_k: int, like: Tensor
) -> Tensor | None:
    """``attn_mask`` ``(seqlen_q, seqlen_k)`` or one for each sample and head, in a form that broadcasts."""
    if mask is None:
        return None
    _check_mask("attn_mask", mask, like)
    if tuple(mask.shape) == (seqlen_q, seqlen_k):
        return _where_to_attend(mask)[None, None]
    if tuple(mask.shape) == (batch * num_heads, seqlen_q, seqlen_k):
        return _where_to_attend(mask).reshape(batch, num_heads, seqlen_q, seqlen_k)
    raise ValueError(
        f"attn_mask must have shape (seqlen_q, seqlen_k) = ({seqlen_q}, {seqlen_k}) or (batch * num_heads, seqlen_q, "
        f"seqlen_k) = ({batch * num_heads}, {seqlen_q}, {seqlen_k}), got {tuple(mask.shape)}"
    )


def _check_mask(name: str, mask: Tensor, like: Tensor) -> None:
    check_tensor(name, mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be bool (True = ignore) or floating point, got {mask.dtype}")
    check_device(name, mask, like)


def _where_to_attend(mask: Tensor) -> Tensor:
    return mask if mask.is_floating_point() else ~mask
