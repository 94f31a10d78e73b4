"""Which implementation of the operators a module calls."""

from types import ModuleType
from typing import Literal

from torch import Tensor

import crossmodal

Implementation = Literal["fused", "reference"]
Tokens = tuple[Tensor, Tensor]  # (B, L, width) and (B,) lengths


def operators_of(implementation: Implementation) -> ModuleType:
    """:mod:`crossmodal` or :mod:`crossmodal.reference`: the same functions, the same answers."""
    return crossmodal if implementation == "fused" else crossmodal.reference


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """``(B, L, width)`` to ``(B, num_heads, L, width / num_heads)``, without a copy."""
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """The inverse of :func:`split_heads`; without a copy where the operators keep the layout of their query."""
    return tokens.transpose(1, 2).flatten(2)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError when the heads do not share the width evenly."""
    if width % num_heads:
        raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
