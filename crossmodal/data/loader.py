"""Which samples make up which step, and how they get there in time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.sample import Dataset
from crossmodal.data.shards import Shards
from crossmodal.data.worker_loader import WorkerLoader


class StepSampler(Sampler[list[int]]):
    """The samples of each step of an epoch, for one of several processes.

    The order is a function of seed and epoch. A step is ``batch_size * world_size`` samples, of which each process
    takes its part: two processes learn from what one with twice the batch would. What is left at the end of an epoch
    and does not fill a step is left out.

    Args:
        size: number of samples.
        batch_size: per process and step.
        seed, epoch: of the order.
        first_step: where to begin, for a run that goes on.
        rank, world_size: which process of how many.
        size_limit: of all samples, this many make up an epoch; another epoch has others.

    Raises:
        ValueError: when there are fewer samples than make a step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        size_limit: int | None = None,
    ) -> None:
        self._whole = batch_size * world_size
        self._part = slice(rank * batch_size, (rank + 1) * batch_size)
        if size < self._whole:
            raise ValueError(f"an epoch needs at least one step of {self._whole} samples, got {size} samples")
        self._order = np.random.default_rng([seed, epoch]).permutation(size)
        self._steps = range(first_step, min(size, size_limit or size) // self._whole)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            yield self._order[step * self._whole : (step + 1) * self._whole][self._part].tolist()


def train_loader(
    dataset: Dataset, collate: Collate, sampler: StepSampler, *, workers: int = 0, device: torch.device | None = None
) -> DataLoader[Batch]:
    """The batches of one epoch; with ``workers`` they are made ahead of time in other processes.

    A worker that dies ends the iteration with a RuntimeError that says so.
    """
    return _loader(dataset, collate, sampler, workers, device)


def evaluation_loader(
    dataset: Dataset, collate: Collate, batch_size: int, *, workers: int = 0, device: torch.device | None = None
) -> DataLoader[Batch]:
    """All samples, in order.

    Raises:
        ValueError: for samples that are streamed.
    """
    if isinstance(dataset, Shards):
        raise ValueError("samples in shards are read for training only: evaluate the split validation or test")
    steps = [list(range(start, min(start + batch_size, len(dataset)))) for start in range(0, len(dataset), batch_size)]
    return _loader(dataset, collate, steps, workers, device)


def _loader(
    dataset: Dataset,
    collate: Collate,
    steps: Sampler[list[int]] | list[list[int]],
    workers: int,
    device: torch.device | None,
) -> DataLoader[Batch]:
    return WorkerLoader(
        dataset,  # type: ignore[arg-type]  # a Dataset of torch in all but name
        batch_sampler=steps,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device is not None and device.type == "cuda",
    )
