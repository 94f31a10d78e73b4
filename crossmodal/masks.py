"""Masks in the form that the operators take: True = attend."""

import torch
from torch import Tensor

from crossmodal._validate import check_tensor


def key_padding(mask: Tensor) -> Tensor:
    """Turns a ``(batch, seqlen_k)`` mask of valid keys into the ``(batch, 1, 1, seqlen_k)`` that broadcasts.

    A 2-D ``attn_mask`` means ``(seqlen_q, seqlen_k)``, as in SDPA, so key padding has to be said explicitly.

    Args:
        mask: ``(batch, seqlen_k)``, bool (True = attend) or float (added to the scores).

    Raises:
        TypeError: if ``mask`` is no tensor, or neither bool nor floating point.
        ValueError: if ``mask`` is not 2-D.
    """
    check_tensor("mask", mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"mask must be bool or floating point, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"mask must have shape (batch, seqlen_k), got {tuple(mask.shape)}")
    return mask[:, None, None, :]
