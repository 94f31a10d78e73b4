"""Other networks that answer by the padding, kept from it: rows of equal length are read together, without padding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def by_length(read: Callable[[Tensor, Tensor], Tensor], values: Tensor, lengths: Tensor, *, least: int = 0) -> Tensor:
    """Features of rows of each length, one group after another; ``(B, T, C)``, with zeros after those of shorter rows.

    Args:
        read: of ``(b, l)`` and lengths ``(b,)`` to features ``(b, t, C)``.
        values, lengths: ``(B, L)`` of any dtype, which ``read`` knows, and ``(B,)`` int64.
        least: of values in a row, where there are so many; what lies beyond its length is read with it.
    """
    ends = lengths.clamp(min=least)
    every = ends.unique().tolist()
    if not every:
        return read(values, lengths)
    rows = [(ends == end).nonzero().squeeze(1) for end in every]
    found = [read(values[among, :end], lengths[among]) for among, end in zip(rows, every, strict=True)]
    steps = max(features.shape[1] for features in found)
    together = torch.cat([pad(features, (0, 0, 0, steps - features.shape[1])) for features in found])
    return together[torch.cat(rows).argsort()]


@contextmanager
def in_equal_lengths(part: nn.Module, lengths: Tensor, steps: int) -> Iterator[None]:
    """Within it, a part of a network reads :func:`by_length`.

    That is for convolutions with a norm over time, such as those of Wav2Vec2 with ``feat_extract_norm="group"``: mean
    and variance of a padded row are not its own.

    Args:
        part: of ``(B, L)`` to ``(B, C, T)``, of one floating dtype.
        lengths: ``(B,)`` int64, of what it reads within.
        steps: T of L; what the part makes of shorter rows is followed by zeros.
    """
    own, whole = part.__dict__.get("forward"), part.forward

    def forward(values: Tensor) -> Tensor:
        features = by_length(lambda some, _: whole(some).transpose(1, 2), values, lengths)
        return pad(features.transpose(1, 2), (0, steps - features.shape[1]))

    part.forward = forward
    try:
        yield
    finally:
        if own is None:
            del part.forward
        else:
            part.forward = own
