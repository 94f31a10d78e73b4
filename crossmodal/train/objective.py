"""What training minimises."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from crossmodal.data.sample import Task


class Objective(NamedTuple):
    """The loss to follow downhill, and the part of it that people want to read.

    Attributes:
        total: scalar, summed over the sets of modalities.
        full: scalar, the mean loss of the answers from all modalities; for a classification in nats.
    """

    total: Tensor
    full: Tensor


def loss_per_sample(logits: Tensor, labels: Tensor, task: Task, smoothing: float = 0.0) -> Tensor:
    """``(..., outputs)`` and labels to ``(...)``.

    Classification: cross-entropy in nats. Multi-label: binary cross-entropy, summed over the outputs. Regression: half
    the squared error, summed over the outputs.

    Args:
        logits: ``(..., outputs)``.
        labels: ``(...)`` int64 class indices, or ``(..., outputs)`` float32.
        task: which of the three.
        smoothing: share of the probability that all classes get alike, in [0, 1); classification only.
    """
    logits = logits.float()
    if task == "classification":
        flat = functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        return flat.view(labels.shape)
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)
    return 0.5 * (logits - labels).square().sum(-1)


def loss_over_sets(
    logits: Tensor,
    labels: Tensor,
    sets: Tensor,
    lengths: Mapping[str, Tensor],
    task: Task = "classification",
    smoothing: float = 0.0,
    *,
    over_batch: bool = False,
) -> Objective:
    """The loss of the answers from every set of modalities, summed over the sets.

    A sample that lacks all modalities of a set cannot be answered from it and is left out there.

    Args:
        logits: ``(sets, B, outputs)``.
        labels: ``(B,)`` int64, or ``(B, outputs)``.
        sets: ``(sets, modalities)`` bool; row 0 holds every modality.
        lengths: by modality, in the order of the columns of ``sets``, ``(B,)``; 0 = missing.
        task, smoothing: see :func:`loss_per_sample`.
        over_batch: divide by the size of the batch in place of the number of answerable samples: the mean over the
            batches of several processes is then that of one batch.
    """
    present = torch.stack([row > 0 for row in lengths.values()])  # (modalities, B)
    answerable = (sets.to(present.device).unsqueeze(2) & present).any(1)  # (sets, B)
    loss = loss_per_sample(logits, labels.expand(len(sets), *labels.shape), task, smoothing)
    sums = (loss * answerable).sum(1)
    means = sums / (labels.shape[0] if over_batch else answerable.sum(1).clamp(min=1))
    return Objective(means.sum(), means[0])


def cross_entropy_over_sets(logits: Tensor, labels: Tensor, sets: Tensor, lengths: Mapping[str, Tensor]) -> Objective:
    """:func:`loss_over_sets` of a classification."""
    return loss_over_sets(logits, labels, sets, lengths)


def auxiliary_loss(
    answers: Mapping[str, Tensor], labels: Mapping[str, Tensor], present: Mapping[str, Tensor], smoothing: float = 0.0
) -> Tensor | float:
    """Mean cross-entropy over the batch and the cells of an image, summed over the modalities that were asked; nats.

    Args:
        answers: by modality, logits ``(B, classes)`` or ``(B, cells, classes)``.
        labels: by modality, ``(B,)`` or ``(B, cells)`` int64.
        present: by modality, ``(B,)`` bool; a sample without the modality is asked nothing.
        smoothing: of labels.
    """
    total: Tensor | float = 0.0
    for name, logits in answers.items():
        each = loss_per_sample(logits, labels[name], "classification", smoothing)
        each = each.flatten(1).mean(1) if each.ndim > 1 else each
        total = total + (each * present[name]).mean()
    return total
