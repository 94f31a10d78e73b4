"""Training samples from tar files, read one after the other: for data that are too many to open one by one."""

import glob
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from crossmodal._extras import require
from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.reader import Reader
from crossmodal.data.sample import Question, Sample, Task

_BUFFER = 1000  # samples among which the order is drawn


def write_shards(rows: Iterable[dict[str, str]], root: Path, pattern: str, *, samples: int = 1000) -> int:
    """Rows of a manifest to tar files, as webdataset writes them: the files of a sample share the name before the dot.

    Args:
        rows: with the columns of a manifest; empty cells are left out.
        root: what paths are relative to.
        pattern: of the names of the files, such as ``"train-%05d.tar"``.
        samples: in a file.

    Returns:
        How many samples were written.

    Raises:
        MissingExtraError: when webdataset is not installed.
        FileNotFoundError: when a file is not there.
    """
    webdataset = require("webdataset", distribution="webdataset", extra="train")
    count = 0
    with webdataset.ShardWriter(pattern, maxcount=samples, verbose=0) as writer:
        for count, row in enumerate(rows, start=1):
            sample: dict[str, Any] = {"__key__": f"{count:09d}"}
            cells = {name: cell for name, cell in row.items() if cell and name in ("image", "audio", "text", "label")}
            for name in ("image", "audio"):
                if name in cells:
                    path = root / cells[name]
                    cells[name] = f"{name}{path.suffix}"
                    sample[cells[name]] = path.read_bytes()
            sample["json"] = json.dumps(cells).encode()
            writer.write(sample)
    return count


def find_shards(pattern: str, root: Path) -> list[Path]:
    """The files that a pattern with ``*`` and ``?`` names, in order.

    Raises:
        FileNotFoundError: when there are none.
    """
    found = sorted(glob.glob(str(root / pattern)))
    if not found:
        raise FileNotFoundError(f"{root / pattern}: no such shards")
    return [Path(name) for name in found]


class Shards:
    """Training samples in tar files; see :class:`crossmodal.data.sample.Dataset`, but for being read in order only.

    Each epoch takes the files in another order, and mixes the samples of a buffer of 1,000.

    Args:
        paths: of the files.
        reader: how images, sounds and texts are read.
        encode: a label as it stands there to a class index or numbers.
        task, classes: see :class:`crossmodal.data.sample.Dataset`.
        seed: of the order and of the augmentation.
    """

    questions: Mapping[str, Question] = MappingProxyType({})

    def __init__(
        self,
        paths: Sequence[Path],
        reader: Reader,
        encode: Callable[[str], Any],
        *,
        task: Task,
        classes: tuple[str, ...],
        seed: int,
    ) -> None:
        self.task, self.classes, self.modalities = task, classes, reader.modalities
        self._paths, self._reader, self._encode, self._seed, self._epoch = paths, reader, encode, seed, 0
        self._size = sum(_count(path) for path in paths)

    def __len__(self) -> int:
        return self._size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        raise TypeError("shards are read in order only: use batches")

    def batches(
        self,
        collate: Collate,
        batch_size: int,
        *,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """The batches of an epoch; arguments as for :class:`crossmodal.data.loader.StepSampler`.

        Every process reads all files and decodes its own samples. With ``workers``, one process reads ahead.
        """
        stream = _Stream(self, collate, batch_size, range(first_step, steps), rank, world_size)
        ahead = {"num_workers": 1, "prefetch_factor": 4} if workers else {}
        return iter(DataLoader(stream, batch_size=None, **ahead))  # type: ignore[arg-type]

    def raw(self) -> Iterator[dict[str, Any]]:
        """The samples of an epoch in its order, not decoded."""
        webdataset = require("webdataset", distribution="webdataset", extra="train")
        rng = np.random.default_rng([self._seed, self._epoch])
        paths = [str(self._paths[index]) for index in rng.permutation(len(self._paths))]
        buffer: list[dict[str, Any]] = []
        for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
            if len(buffer) < _BUFFER:
                buffer.append(sample)
                continue
            place = int(rng.integers(_BUFFER))
            yield buffer[place]
            buffer[place] = sample
        yield from (buffer[index] for index in rng.permutation(len(buffer)))

    def decode(self, raw: Mapping[str, Any], number: int) -> Sample:
        """A sample, changed at random as the reader's options say.

        Raises:
            BrokenFileError: when a part of it cannot be used.
        """
        rng = np.random.default_rng([self._seed, self._epoch, number])
        cells = json.loads(raw["json"])
        name = f"{raw['__url__']} {raw['__key__']}"
        inputs = {}
        for column in self.modalities:
            if column not in cells:
                continue
            cell = cells[column]
            content = None if column == "text" else raw[cell]
            values = self._reader.read(column, cell if content is None else f"{name}.{cell}", Path(), content)
            values = self._reader.augment(column, values, rng)
            if column != "text" or len(values):
                inputs[column] = values
        return Sample(inputs, torch.tensor(self._encode(cells["label"])), name)


class _Stream(IterableDataset[Batch]):
    def __init__(
        self, shards: Shards, collate: Collate, batch_size: int, steps: range, rank: int, world_size: int
    ) -> None:
        self._shards, self._collate, self._size, self._steps = shards, collate, batch_size, steps
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        whole = self._size * self._world_size
        numbered = itertools.islice(enumerate(self._shards.raw()), self._steps.start * whole, self._steps.stop * whole)
        own = range(self._rank * self._size, (self._rank + 1) * self._size)
        samples = (self._shards.decode(raw, number) for number, raw in numbered if number % whole in own)
        while chosen := list(itertools.islice(samples, self._size)):
            yield self._collate(chosen)


def _count(path: Path) -> int:
    with tarfile.open(path) as file:
        return sum(name.endswith(".json") for name in file.getnames())
