"""Parts of other networks that answer by the padding, kept from it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@contextmanager
def in_equal_lengths(part: nn.Module, lengths: Tensor, steps: int) -> Iterator[None]:
    """Within it, the part reads rows of equal length together, without what lies beyond, and one group after another.

    That is for convolutions with a norm over time, such as those of Wav2Vec2 with ``feat_extract_norm="group"``: mean
    and variance of a padded row are not its own.

    Args:
        part: of ``(B, L)`` to ``(B, C, T)``.
        lengths: ``(B,)``, of what it reads within.
        steps: T of L; what the part makes of shorter rows is followed by zeros.
    """
    own, whole = part.__dict__.get("forward"), part.forward

    def forward(values: Tensor) -> Tensor:
        every = lengths.unique().tolist()
        if len(every) == 0 or every == [values.shape[1]]:
            return whole(values)
        rows = [(lengths == length).nonzero().squeeze(1) for length in every]
        found = [whole(values[among, :length]) for among, length in zip(rows, every, strict=True)]
        together = torch.cat([pad(features, (0, steps - features.shape[2])) for features in found])
        return together[torch.cat(rows).argsort()]

    part.forward = forward
    try:
        yield
    finally:
        if own is None:
            del part.forward
        else:
            part.forward = own
