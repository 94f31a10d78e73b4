"""Where a token stands, as waves of many lengths."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


class Positions:
    """What tokens ask with, and are asked for, in attention, beside what they say.

    States of a recurrent network that learns to spell do not count words. With a position, speech can ask an image for
    what stands at its time; that it is in queries and keys alone keeps it out of what is spelt.

    Args:
        factors: by modality, of its sinusoids; 0 or left out: none.
        modalities: of the model.
        width: of the tokens.

    Raises:
        ValueError: for a modality that the model does not have, a factor that is no finite float32, or an odd width.
    """

    def __init__(self, factors: Mapping[str, float] | None, modalities: Iterable[str], width: int) -> None:
        known = tuple(modalities)
        for name, factor in (factors or {}).items():
            if name not in known:
                raise ValueError(f"positions must be of {', '.join(known)}, got {name!r}")
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) <= _LARGEST:
                raise ValueError(f"positions must be numbers by modality, got {factor!r} for {name}")
        self.factors = {name: float(factor) for name, factor in (factors or {}).items() if factor}
        if self.factors and width % 2:
            raise ValueError(f"width must be even with positions, got {width}")

    def of(self, modality: str, tokens: Tensor) -> Tensor | None:
        """``(L, width)`` for tokens ``(B, L, width)``; None for a modality without."""
        if modality not in self.factors:
            return None
        waves = sinusoids(*tokens.shape[1:], device=tokens.device)
        return (self.factors[modality] * waves).to(tokens.dtype)


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
