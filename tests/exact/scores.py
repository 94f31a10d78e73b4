"""Scores before the softmax: who may see whom, and what is added."""

import numpy as np
from torch import Tensor

from crossmodal import Source
from tests.exact.arrays import Array, array, within


def visible(
    shape: tuple[int, int, int, int],
    source: Source,
    *,
    is_causal: bool,
    causal_align: str,
    window_size: tuple[int, int],
    query_lengths: Tensor | None,
) -> Array:
    """(batch, num_heads, seqlen_q, seqlen_k) bool: lengths, masks, causal and window intersect."""
    batch, _, seqlen_q, seqlen_k = shape
    seen = np.ones(shape, bool)
    seen &= within(source.lengths, batch, seqlen_k)[:, None, None]
    seen &= within(query_lengths, batch, seqlen_q)[:, None, :, None]
    for term in (source.mask, source.bias):
        if term is not None:
            seen &= term.numpy() if not term.is_floating_point() else array(term, np.float64) != -np.inf

    shift = np.zeros(batch, np.int64)
    if causal_align == "lower_right":
        shift += seqlen_k if source.lengths is None else source.lengths.numpy()
        shift -= seqlen_q if query_lengths is None else query_lengths.numpy()
    # How far key j lies to the right of the place of query i.
    ahead = np.arange(seqlen_k) - (np.arange(seqlen_q)[:, None] + shift[:, None, None])
    left, right = window_size
    if is_causal:
        seen &= (ahead <= 0)[:, None]
    if left >= 0:
        seen &= (ahead >= -left)[:, None]
    if right >= 0:
        seen &= (ahead <= right)[:, None]
    return seen


def added(shape: tuple[int, int, int, int], source: Source, precision: type) -> Array:
    """The sum of the float terms; -inf where one of them hides."""
    total = np.zeros(shape, precision)
    for term in (source.mask, source.bias):
        if term is not None and term.is_floating_point():
            total = total + array(term, precision)
    return total
