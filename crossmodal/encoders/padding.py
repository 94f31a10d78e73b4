"""Padding: which tokens are real, and how padding is kept out of what is learnt."""

import torch
from torch import Tensor


def is_real(lengths: Tensor, size: int) -> Tensor:
    """``(B, size)`` bool, True where the position lies before the sample's length."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(values: Tensor, lengths: Tensor) -> Tensor:
    """``values`` ``(B, L, ...)`` with zeros at and beyond each length, whatever was there before.

    Chosen, not multiplied: padding may hold NaN, and zero times NaN is NaN, in gradients too.
    """
    real = is_real(lengths, values.shape[1])
    return values.where(real.view(real.shape + (1,) * (values.ndim - 2)), values.new_zeros(()))


def mirrored(lengths: Tensor, size: int) -> Tensor:
    """``(B, size)``: where each place is when the real tokens are in reverse order and padding is left in place."""
    at = torch.arange(size, device=lengths.device)
    opposite = lengths.unsqueeze(1) - 1 - at
    return torch.where(opposite >= 0, opposite, at)


def reverse_real(values: Tensor, lengths: Tensor) -> Tensor:
    """``values`` ``(B, L, C)`` with the real tokens of each sample in reverse order, padding left in place."""
    return values.gather(1, mirrored(lengths, values.shape[1]).unsqueeze(2).expand_as(values))
