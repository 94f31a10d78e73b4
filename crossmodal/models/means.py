"""Means of losses."""

from torch import Tensor


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean; 0 of no values, with gradients of zero where the mean is not a number."""
    return values.mean() if values.numel() else values.sum()
