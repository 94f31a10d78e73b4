"""The training loop."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from crossmodal.data.batch import Batch
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.modality_dropout import modality_sets
from crossmodal.train.checkpoint import load_checkpoint, save_checkpoint
from crossmodal.train.evaluate import evaluate
from crossmodal.train.objective import cross_entropy_over_sets
from crossmodal.train.progress import EpochLine


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        epochs: passes of ``steps`` batches.
        steps: batches per epoch.
        learning_rate: the peak of the one-cycle schedule (Smith and Topin, arXiv 1708.07120).
        warm_up: share of all steps before the peak, in (0, 1).
        max_gradient: the norm to which gradients are clipped; recurrent layers need it.
    """

    epochs: int
    steps: int
    learning_rate: float = 8e-3
    warm_up: float = 0.3
    max_gradient: float = 1.0


@dataclass
class History:
    """What happened, epoch by epoch.

    Attributes:
        loss, accuracy: on the training samples, while learning.
        val_loss, val_accuracy: on the validation samples, after each epoch.
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Index of the epoch with the lowest validation loss."""
        return min(range(len(self.val_loss)), key=self.val_loss.__getitem__)

    def append(self, values: dict[str, float]) -> None:
        """Add one epoch; ``values`` has the four names."""
        for name, value in values.items():
            getattr(self, name).append(value)

    def as_dict(self) -> dict[str, Any]:
        """The four lists and ``best_epoch``, ready for JSON."""
        return {**asdict(self), "best_epoch": self.best_epoch if self.val_loss else None}


def fit(
    model: FusionClassifier,
    train: Callable[[int], Iterable[Batch]],
    validation: Sequence[Batch],
    schedule: Schedule,
    checkpoint: Path,
    *,
    description: dict[str, Any],
    stream: TextIO | None = None,
) -> History:
    """Train with Adam, keep the epoch with the lowest validation loss, leave its weights in ``model``.

    What is minimised counts the answers from every set of modalities (:func:`cross_entropy_over_sets`); the
    loss and the accuracy that are printed are those of the answers from all modalities.

    Args:
        model: trained in place.
        train: epoch number to its batches, ``schedule.steps`` of them.
        validation: the same batches after each epoch.
        schedule: how long and how fast.
        checkpoint: the best weights so far, written after each epoch that improves them. Interrupted before
            the first epoch ends, the weights of that moment are written.
        description: goes into the checkpoint, so that the model can be built again.
        stream: where to print the epochs; None is standard output.

    Raises:
        KeyboardInterrupt: passed on, after the checkpoint is safe.
        FloatingPointError: when a gradient is not finite.
    """
    stream = stream or sys.stdout
    history = History()
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule.learning_rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.epochs * schedule.steps, pct_start=schedule.warm_up
    )
    sets = modality_sets(len(model.modalities))
    try:
        for epoch in range(schedule.epochs):
            print(f"Epoch {epoch + 1}/{schedule.epochs}", file=stream, flush=True)
            line = EpochLine(schedule.steps, stream)
            learnt = _learn_epoch(model, train(epoch), sets, optimizer, cycle, schedule, line)
            result = evaluate(model, validation)
            values = {**learnt, "val_loss": result.loss, "val_accuracy": result.accuracy}
            line.finish(**values)
            history.append(values)
            if history.best_epoch == epoch:
                save_checkpoint(checkpoint, model, {**description, "epoch": epoch + 1})
    except KeyboardInterrupt:
        if not history.val_loss:
            save_checkpoint(checkpoint, model, {**description, "epoch": 0})
        raise
    weights, _ = load_checkpoint(checkpoint)
    model.load_state_dict(weights)
    return history


def _learn_epoch(
    model: FusionClassifier,
    batches: Iterable[Batch],
    sets: Tensor,
    optimizer: torch.optim.Optimizer,
    cycle: torch.optim.lr_scheduler.LRScheduler,
    schedule: Schedule,
    line: EpochLine,
) -> dict[str, float]:
    """One pass of training; the mean loss and the accuracy of the answers from all modalities."""
    model.train()
    total, right, seen = 0.0, 0, 0
    for step, batch in enumerate(batches, start=1):
        logits = model(batch.inputs, batch.lengths, sets=sets).logits
        lengths = {name: batch.lengths[name] for name in model.modalities}
        objective = cross_entropy_over_sets(logits, batch.labels, sets, lengths)
        optimizer.zero_grad()
        objective.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.max_gradient)
        if not norm.isfinite():
            raise FloatingPointError(f"the gradient is not finite in step {step} (loss {objective.full.item()})")
        optimizer.step()
        cycle.step()
        seen += len(batch.labels)
        total += objective.full.item() * len(batch.labels)
        right += int((logits[0].argmax(1) == batch.labels).sum())
        line.update(step, loss=total / seen, accuracy=right / seen)
    return {"loss": total / seen, "accuracy": right / seen}
