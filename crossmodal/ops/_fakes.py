"""Shapes and strides of operator outputs, for tracing; each mirrors an allocation in csrc/torch."""

from torch import Tensor


def order_of(like: Tensor, rows: int, width: int) -> Tensor:
    """(batch, num_heads, rows, width) in the memory order of ``like``: twin of `empty_in_order_of`."""
    batch, num_heads = like.shape[:2]
    if like.stride(1) >= like.stride(2):
        return like.new_empty((batch, num_heads, rows, width))
    return like.new_empty((batch, rows, num_heads, width)).transpose(1, 2)
