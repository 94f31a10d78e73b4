"""Lengths of inputs, checked as the operators check theirs: values where reading them is free, on eager CPU tensors."""

from torch import Tensor

from crossmodal._validate import check_lengths, check_tensor


def check_sequences(name: str, values: Tensor, lengths: Tensor) -> None:
    """Raises ValueError or TypeError unless ``values`` are ``(B, L)`` and ``lengths`` ``(B,)`` in [0, L]."""
    if values.dim() != 2:
        raise ValueError(f"{name} must have shape (batch, length), got {tuple(values.shape)}")
    check_lengths("lengths", lengths, values.shape[0], values.shape[1], values, name)


def check_there(pixels: Tensor, lengths: Tensor) -> Tensor:
    """``(B,)``: 1 for images that are there, 0 for others; ``lengths`` above 1 count as 1.

    Raises:
        TypeError: when ``lengths`` are no integers.
        ValueError: when they are not ``(B,)``, or negative.
    """
    check_tensor("lengths", lengths)
    there = lengths.clamp(max=1)
    check_lengths("lengths", there, pixels.shape[0], 1, pixels, "pixels")
    return there
