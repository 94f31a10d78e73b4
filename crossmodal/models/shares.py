"""Attention of many queries as one share for each of what they looked at."""

from torch import Tensor


def shares_of(weights: Tensor) -> Tensor:
    """``(B, heads, queries, N)`` to ``(B, N)``: the mean over all queries that looked at anything.

    It sums to 1, and is 0 where no query did; a token of a modality that is missing asks nothing.
    """
    given = weights.sum((1, 2))
    whole = given.sum(1, keepdim=True)
    return given / whole.where(whole > 0, 1)
