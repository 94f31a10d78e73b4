"""A model's answers to a whole data set."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.loader import evaluation_loader
from crossmodal.data.sample import Dataset
from crossmodal.train.learner import Answers, Learner

Change = Callable[[Batch], Batch]


def answers_of(
    model: nn.Module,
    learner: Learner,
    dataset: Dataset,
    collate: Collate,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    change: Change | None = None,
) -> Answers:
    """All of them, in order, in evaluation mode; the model's mode is restored.

    Args:
        model, learner, dataset, collate: see :class:`crossmodal.train.loop.Trainer`.
        batch_size, workers: of the loader.
        device: where the model is; None is the CPU.
        autocast: the precision.
        change: made of every batch first, such as hiding a modality.
    """
    device = device or torch.device("cpu")
    loader = evaluation_loader(dataset, collate, batch_size, workers=workers, device=device)
    training = model.training
    model.eval()
    with autocast():
        answers = learner.answer(model, _changed(loader, device, change))
    model.train(training)
    return answers


def _changed(batches: Iterable[Batch], device: torch.device, change: Change | None) -> Iterator[Batch]:
    for batch in batches:
        batch = batch.to(device)
        yield batch if change is None else change(batch)
