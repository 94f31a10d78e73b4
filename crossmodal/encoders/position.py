"""Where a token stands, as waves of many lengths."""

import math

import torch
from torch import Tensor


def sinusoids(
    tokens: int, channels: int, *, shortest: float = 16.0, longest: float = 1024.0, device: torch.device | None = None
) -> Tensor:
    """``(tokens, channels)`` in [-1, 1]: sines in the first half of the channels, cosines in the second (Vaswani et
    al., arXiv 1706.03762).

    Args:
        tokens: how many.
        channels: even.
        shortest, longest: wavelengths, in tokens; between them they grow geometrically.

    Raises:
        ValueError: when ``channels`` is odd.
    """
    if channels % 2:
        raise ValueError(f"channels must be even, got {channels}")
    lengths = torch.logspace(math.log2(shortest), math.log2(longest), channels // 2, base=2, device=device)
    angles = 2 * math.pi * torch.arange(tokens, device=device).unsqueeze(1) / lengths
    return torch.cat([angles.sin(), angles.cos()], 1)
