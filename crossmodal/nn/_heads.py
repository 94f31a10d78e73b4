"""Features to attention heads and back."""

from torch import Tensor


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """``(B, L, width)`` to ``(B, num_heads, L, width / num_heads)``, a view."""
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """The inverse of :func:`split_heads`; without a copy where the operators keep the layout of their query."""
    return tokens.transpose(1, 2).flatten(2)
