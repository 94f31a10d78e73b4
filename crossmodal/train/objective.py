"""What training minimises."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Objective(NamedTuple):
    """The loss to follow downhill, and the part of it that people want to read.

    Attributes:
        total: scalar, summed over the sets of modalities.
        full: scalar, the mean cross-entropy in nats of the answers from all modalities.
    """

    total: Tensor
    full: Tensor


def cross_entropy_over_sets(logits: Tensor, labels: Tensor, sets: Tensor, lengths: Mapping[str, Tensor]) -> Objective:
    """Cross-entropy of the answers from every set of modalities, summed over the sets.

    A sample that lacks all modalities of a set cannot be answered from it and is left out there.

    Args:
        logits: ``(sets, B, classes)``.
        labels: ``(B,)`` int64.
        sets: ``(sets, modalities)`` bool; row 0 holds every modality.
        lengths: by modality, in the order of the columns of ``sets``, ``(B,)``; 0 = missing.
    """
    present = torch.stack([row > 0 for row in lengths.values()])  # (modalities, B)
    answerable = (sets.to(present.device).unsqueeze(2) & present).any(1)  # (sets, B)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(sets)), reduction="none").view_as(
        answerable
    )
    means = (loss * answerable).sum(1) / answerable.sum(1).clamp(min=1)
    return Objective(means.sum(), means[0])
