"""The rows of a manifest as numbered samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from crossmodal.data.reader import Reader
from crossmodal.data.sample import Question, Sample, Task


class ManifestDataset:
    """One split; see :class:`crossmodal.data.sample.Dataset`. Files are read when a sample is asked for.

    Args:
        cells: by row, what is not empty, by column.
        labels: by row, a class index, or a list of floats.
        root: what paths are relative to.
        reader: how they are read.
        task, classes: see :class:`crossmodal.data.sample.Dataset`.
        names: of the rows.
        seed: of the augmentation; None for none.
    """

    questions: Mapping[str, Question] = MappingProxyType({})

    def __init__(
        self,
        cells: Sequence[Mapping[str, str]],
        labels: Sequence[int | list[float]],
        root: Path,
        reader: Reader,
        *,
        task: Task,
        classes: tuple[str, ...],
        names: Sequence[str],
        seed: int | None,
    ) -> None:
        self.task, self.classes, self.modalities = task, classes, reader.modalities
        self._cells, self._labels, self._names = cells, labels, names
        self._root, self._reader, self._seed, self._epoch = root, reader, seed, 0

    def __len__(self) -> int:
        return len(self._cells)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self._seed or 0, self._epoch, index])
        inputs = {}
        for name, cell in self._cells[index].items():
            values = self._reader.read(name, cell, self._root)
            if self._seed is not None:
                values = self._reader.augment(name, values, rng)
            if name != "text" or len(values):  # a text of nothing but stop words is no text
                inputs[name] = values
        label: Any = self._labels[index]
        return Sample(inputs, torch.tensor(label), self._names[index])
