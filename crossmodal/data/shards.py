"""Training samples from tar files, read one after the other: for data that are too many to open one by one."""

import glob
import itertools
import json
import logging
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset

from crossmodal._extras import require
from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.labels import LabelError
from crossmodal.data.reader import Reader
from crossmodal.data.sample import Question, Sample, Task
from crossmodal.data.shard_sample import read_members
from crossmodal.data.worker_loader import WorkerLoader

_COLUMNS = ("image", "audio", "text", "label")
_LOG = logging.getLogger("crossmodal")
_BUFFER = 1000  # samples among which the order is drawn


def write_shards(rows: Iterable[dict[str, str]], root: Path, pattern: str, *, samples: int = 1000) -> int:
    """Rows of a manifest to tar files, as webdataset writes them: the files of a sample share the name before the dot.

    A row of which a file cannot be read is left out, and named in a warning of the log ``crossmodal``. The tar files
    get their names when the last one is whole: ended before, this leaves those that were there as they were. Further
    ones of the same pattern, from more rows than these, are removed.

    Args:
        rows: with the columns of a manifest; empty cells are left out. They are what will be learnt from: of a manifest
            :func:`crossmodal.data.training_rows`, not those that it is tested on.
        root: what paths are relative to.
        pattern: of the names of the files, such as ``"train-%05d.tar"``, relative to the working folder.
        samples: in a file.

    Returns:
        How many samples were written.

    Raises:
        MissingExtraError: when webdataset is not installed.
        FileNotFoundError: when no row is left, as with a wrong ``root``, or there is no folder to write in.
        OSError: when the tar files cannot be written.
    """
    webdataset = require("webdataset", distribution="webdataset", extra="train")
    folder, count, problem = Path(pattern).parent, 0, ""
    with tempfile.TemporaryDirectory(prefix=".shards-", dir=folder) as partial:
        with webdataset.ShardWriter(str(Path(partial) / Path(pattern).name), maxcount=samples, verbose=0) as writer:
            for number, row in enumerate(rows, start=1):
                try:
                    sample = _packed(row, root)
                except (OSError, ValueError) as error:
                    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
                    problem = f"row {number} is left out: {reason}"
                    _LOG.warning("write_shards: %s", problem)
                    continue
                writer.write({"__key__": f"{number:09d}", **sample})
                count += 1
        if not count:
            raise FileNotFoundError(f"no row can be written{problem and f'; the last one: {problem}'}")
        written = sorted(Path(partial).iterdir())
        for file in written:
            os.replace(file, folder / file.name)
        for number in itertools.count(len(written)):
            left = folder / (Path(pattern).name % number)
            if not left.exists():
                break
            left.unlink()
    return count


def _packed(row: Mapping[str, str], root: Path) -> dict[str, Any]:
    """The members of a sample, by the ends of their names."""
    members: dict[str, Any] = {}
    # An empty list is the label of none of the names, and 0 is a number.
    cells: dict[str, Any] = {name: row[name] for name in _COLUMNS if row.get(name) not in (None, "")}
    for name in ("image", "audio"):
        if name in cells:
            path = root / cells[name]
            cells[name] = f"{name}{path.suffix.lower()}"
            members[cells[name]] = path.read_bytes()
    return {**members, "json": json.dumps(cells).encode()}


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

    A sample is what :func:`write_shards` writes, or members named as usual: ``png``, ``jpg``, ``jpeg``; ``wav``,
    ``flac``, ``ogg``, ``mp3``; ``txt``; ``cls``, its label as the manifest has it.

    Args:
        paths: of the files.
        reader: how images, sounds and texts are read.
        encode: a label as it stands there to a class index or numbers; raises :class:`LabelError`.
        task, classes: see :class:`crossmodal.data.sample.Dataset`.
        seed: of the order and of the augmentation.
        strict: a file or sample that cannot be used stops; otherwise it is left out.
        verify: read all samples once before anything is learnt from any; without it, one that cannot be used stops
            when its turn comes.

    Attributes:
        skipped: what was wrong with each file or sample that is left out.

    Raises:
        MissingExtraError: when webdataset is not installed.
        BrokenFileError: when no sample is left, or with ``strict``.
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
        strict: bool = False,
        verify: bool = True,
    ) -> None:
        self.task, self.classes, self.modalities = task, classes, reader.modalities
        self._reader, self._encode, self._seed, self._epoch = reader, encode, seed, 0
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda path: self._survey(path, strict, verify), paths))
        self.skipped = [problem for shard in found for problem in shard.problems]
        self._shards = [shard for shard in found if shard.size]
        self._size = sum(shard.size for shard in self._shards)
        if not self._size:
            first = f"; the first: {self.skipped[0]}" if self.skipped else ""
            raise BrokenFileError(
                f"{paths[0]}: no samples in this or any other shard ({len(self.skipped)} skipped{first})"
            )

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

        Raises:
            BrokenFileError: when a part of a sample cannot be used, or a file has lost samples since it was opened.
        """
        stream = _Stream(self, collate, batch_size, range(first_step, steps), rank, world_size)
        ahead: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 4} if workers else {}
        return iter(WorkerLoader(stream, batch_size=None, **ahead))

    def raw(self) -> Iterator[dict[str, Any]]:
        """The samples of an epoch in its order, not decoded."""
        rng = np.random.default_rng([self._seed, self._epoch])
        shards = (self._shards[index] for index in rng.permutation(len(self._shards)))
        buffer: list[dict[str, Any]] = []
        for sample in itertools.chain.from_iterable(map(_sound_samples, shards)):
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
        sample = self._read(raw)
        inputs = {column: self._reader.augment(column, values, rng) for column, values in sample.inputs.items()}
        return sample._replace(inputs=inputs)

    def _read(self, raw: Mapping[str, Any]) -> Sample:
        name = f"{raw['__url__']} {raw['__key__']}"
        try:
            cells, label = read_members(raw)
        except ValueError as error:
            raise BrokenFileError(f"{name} {error}") from error
        if not any(column in cells for column in self.modalities):
            raise BrokenFileError(f"{name} has nothing of the modalities {', '.join(self.modalities)}")
        inputs = {}
        for column in self.modalities:
            if column not in cells:
                continue
            value, content = cells[column]
            values = self._reader.read(column, value if content is None else f"{name}.{value}", Path(), content)
            if column != "text" or len(values):
                inputs[column] = values
        try:
            return Sample(inputs, torch.tensor(self._encode(label)), name)
        except LabelError as error:
            raise BrokenFileError(f"{name} has the label {label!r}, {error}") from error

    def _survey(self, path: Path, strict: bool, verify: bool) -> "_Shard":
        problems: dict[int, str] = {}
        try:
            in_all = _count(path)
            if not in_all:
                raise BrokenFileError(f"{path}: holds no samples")
            if not verify:
                return _Shard(path, in_all)
            for number, raw in enumerate(_samples(path)):
                try:
                    self._read(raw)
                except BrokenFileError as error:
                    if strict:
                        raise
                    problems[number] = str(error)
        except BrokenFileError as error:
            if strict:
                raise
            return _Shard(path, 0, problems=(str(error),))
        return _Shard(path, in_all - len(problems), frozenset(problems), tuple(problems.values()))


class _Shard(NamedTuple):
    """A tar file: how many samples of it can be used, the numbers of those that cannot, and what is wrong with them."""

    path: Path
    size: int
    broken: frozenset[int] = frozenset()
    problems: tuple[str, ...] = ()


def _sound_samples(shard: _Shard) -> Iterator[dict[str, Any]]:
    left = shard.size
    for number, raw in enumerate(_samples(shard.path)):
        if number not in shard.broken:
            yield raw
            left -= 1
    if left > 0:
        raise BrokenFileError(f"{shard.path}: has lost {left} of its samples since it was opened")


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """All samples of a tar file, not decoded."""
    webdataset = require("webdataset", distribution="webdataset", extra="train")
    with _named(path):
        # Processes share samples, not files.
        yield from webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False, nodesplitter=None)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise BrokenFileError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # webdataset adds what it had read before, and the stream's address; tarfile a line for each compression it tried.
    said = str(error.args[0] if error.args else error).partition(" dict_keys(")[0].partition(" @ ")[0].splitlines()[0]
    return "no tar file" if said.startswith("file could not be opened") else said


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
    """As webdataset counts: members in a row that share the name before the dot are a sample.

    Raises:
        BrokenFileError: for a file that is no tar, or that is cut off or damaged anywhere but within a member.
    """
    names = require("webdataset.tariterators", distribution="webdataset", extra="train")
    with _named(path), tarfile.open(path) as file:
        members = [member.name for member in file if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name)]
        _check_end(file)
    keys = [key for name in members if (key := names.base_plus_ext(name)[0]) is not None]
    return sum(1 for _ in itertools.groupby(keys))


def _check_end(file: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros; what is no header, or missing, tarfile takes for the end as well."""
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    rest = file.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("cut off: the end of the archive is missing")
    while rest:
        if any(rest):
            raise tarfile.ReadError(f"damaged: no header of a member at byte {file.offset}")
        rest = file.fileobj.read(tarfile.RECORDSIZE)
