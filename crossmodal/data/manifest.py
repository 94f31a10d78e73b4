"""A user's own data: a table of files, texts and labels."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.manifest_dataset import ManifestDataset
from crossmodal.data.reader import Reader, ReaderOptions, make_reader
from crossmodal.data.sample import Splits, Task
from crossmodal.data.shards import Shards, find_shards

COLUMNS = ("image", "audio", "text")
LABEL, SPLIT = "label", "split"
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_SHARES = (0.8, 0.1)  # of training and validation, where no column says
_LONGEST_FIELD = 2**24  # characters; the csv module stops at 131,072


_TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")


@dataclass(frozen=True)
class ManifestOptions(ReaderOptions):
    """How a manifest is read.

    Attributes:
        task: of the labels. Classification: a name. Multi-label: names separated by ``;``. Regression: numbers
            separated by ``;``.
        strict: a broken or missing file stops; otherwise its row is skipped, and named in the description.
        verify: decode every file once before anything is learnt from any.
        shards: pattern of tar files, relative to the root, that training samples are streamed from instead of the rows
            for training, which still say what words and labels there are; see :func:`crossmodal.data.write_shards`.
    """

    task: Task = "classification"
    strict: bool = False
    verify: bool = True
    shards: str | None = None


def make_options(values: dict[str, Any], *, strict: bool = False) -> ManifestOptions:
    """Options from names and values, such as a YAML file holds.

    Args:
        values: fields of :class:`ManifestOptions`; those left out take their defaults.
        strict: where ``values`` do not say.

    Raises:
        ValueError: for an unknown name, or a value that cannot be one.
    """
    known = [field.name for field in fields(ManifestOptions)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"options must be among {', '.join(known)}, got {', '.join(unknown)}")
    listed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    listed.setdefault("strict", strict)
    options = ManifestOptions(**listed)
    size = options.image_size
    if not (isinstance(size, tuple) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)):
        raise ValueError(f"options: image_size must be channels, height and width, got {values['image_size']!r}")
    if options.task not in _TASKS:
        raise ValueError(f"options: task must be one of {', '.join(_TASKS)}, got {options.task!r}")
    for name in ("sample_rate", "vocabulary"):
        value = getattr(options, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"options: {name} must be an int above 0, got {value!r}")
    return options


class Row(NamedTuple):
    """One line of a manifest.

    Attributes:
        number: of the line, from 1, the header not counted.
        cells: by column, what is not empty.
        label: as it stands there.
        split: ``train``, ``validation``, ``test``, or "" where nothing is said.
    """

    number: int
    cells: dict[str, str]
    label: str
    split: str


class ManifestError(ValueError):
    """A manifest that cannot be used; the message is one line that begins with its path."""


def read_manifest(path: Path, *, labelled: bool = True) -> list[Row]:
    """The rows of a CSV file with a header, or of a JSONL file of one object a line.

    Columns: ``image``, ``audio`` (paths) and ``text``, of which at least one must be there and any cell may be empty;
    ``label``; optionally ``split``. Others are ignored.

    Args:
        path: ``*.jsonl`` or ``*.ndjson`` is JSONL, everything else CSV.
        labelled: whether a label is needed.

    Raises:
        FileNotFoundError: when there is no such file.
        ManifestError: when a column or a label is missing, a row has nothing to learn from, or the file is no table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest")
    read = _read_jsonl if path.suffix in (".jsonl", ".ndjson") else _read_csv
    rows = []
    for number, values in enumerate(read(path), start=1):
        columns = [name for name in COLUMNS if name in values]
        if not columns or (labelled and LABEL not in values):
            wanted = f"at least one of {', '.join(COLUMNS)}" if not columns else LABEL
            raise ManifestError(f"{path}: row {number} has the columns {', '.join(values)}; {wanted} is missing")
        label, split = values.get(LABEL, ""), values.get(SPLIT, "").strip().lower()
        if labelled and not label:
            raise ManifestError(f"{path}: row {number} has no label")
        if split and split not in _SPLITS:
            raise ManifestError(f"{path}: row {number} has the split {split!r}; {', '.join(_SPLITS)} are known")
        cells = {name: values[name] for name in columns if values[name].strip()}
        rows.append(Row(number, cells, label, _SPLITS.get(split, "")))
    if not rows:
        raise ManifestError(f"{path}: holds no rows")
    return rows


def manifest_splits(path: Path, root: Path | None, options: ManifestOptions, *, seed: int = 0) -> Splits:
    """The data sets of a manifest.

    Rows without a split are divided 8:1:1 at random, in the same way every time. A tokenizer is learnt from the
    texts of the training rows.

    Args:
        path: see :func:`read_manifest`.
        root: what its paths are relative to; None: its own folder.
        options: how it is read.
        seed: of the augmentation.

    Raises:
        MissingExtraError: when a package that the columns need is not installed.
        FileNotFoundError: when there is no such manifest, or, with ``strict``, no such file.
        ManifestError: see :func:`read_manifest`; also for labels that do not fit the task, and empty splits.
        BrokenFileError: with ``strict``, for the first file that cannot be used.
    """
    rows = read_manifest(path)
    root = root or path.parent
    reader = make_reader([row.cells for row in rows], options)
    skipped: list[str] = []
    if options.verify:
        rows, skipped = _verified(rows, root, reader, options.strict)
    parts = _divided(rows)
    if empty := [name for name, part in parts.items() if not part]:
        raise ManifestError(f"{path}: no rows for {', '.join(empty)} ({len(skipped)} skipped)")
    reader.learn_tokens(row.cells["text"] for row in parts["train"] if "text" in row.cells)
    classes, encode = _labels(path, rows, options.task)
    train, validation, test = (
        ManifestDataset(
            [row.cells for row in part],
            [encode(row) for row in part],
            root,
            reader,
            task=options.task,
            classes=classes,
            names=[f"{path.name} row {row.number}" for row in part],
            seed=seed if name == "train" else None,
        )
        for name, part in parts.items()
    )
    if options.shards:
        streamed = Shards(
            find_shards(options.shards, root),
            reader,
            lambda label: encode(Row(0, {}, label, "")),
            task=options.task,
            classes=classes,
            seed=seed,
        )
        return Splits(streamed, validation, test, {"reader": reader.as_dict(), "skipped": skipped})
    return Splits(train, validation, test, {"reader": reader.as_dict(), "skipped": skipped})


def _read_csv(path: Path) -> Iterable[dict[str, str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            for values in csv.DictReader(file):
                yield {name: value or "" for name, value in values.items() if isinstance(name, str)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: no CSV: {error}") from error


def _read_jsonl(path: Path) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ManifestError(f"{path}: line {number} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise ManifestError(f"{path}: line {number} must be an object, got {type(values).__name__}")
            yield {name: "" if value is None else _as_text(value) for name, value in values.items()}


def _as_text(value: Any) -> str:
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)


def _verified(rows: Sequence[Row], root: Path, reader: Reader, strict: bool) -> tuple[list[Row], list[str]]:
    """The rows of which every file can be read, and what was wrong with the others; every file is read once."""
    files = dict.fromkeys((name, row.cells[name]) for row in rows for name in ("image", "audio") if name in row.cells)

    def problem(file: tuple[str, str]) -> str:
        try:
            reader.read(file[0], file[1], root)
        except (BrokenFileError, FileNotFoundError) as error:
            if strict:
                raise
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        problems: Mapping[tuple[str, str], str] = dict(zip(files, pool.map(problem, files), strict=True))
    good, skipped = [], []
    for row in rows:
        wrong = [text for name, cell in row.cells.items() if (text := problems.get((name, cell), ""))]
        if wrong:
            skipped.append(f"row {row.number}: {'; '.join(wrong)}")
        else:
            good.append(row)
    return good, skipped


def _divided(rows: Sequence[Row]) -> dict[str, list[Row]]:
    order = np.random.default_rng(0).permutation(len(rows))
    train, validation = (round(share * len(rows)) for share in _SHARES)
    drawn = ["" for _ in rows]
    for place, index in enumerate(order):
        drawn[index] = "train" if place < train else "validation" if place < train + validation else "test"
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row, split in zip(rows, drawn, strict=True):
        parts[row.split or split].append(row)
    return parts


def _labels(path: Path, rows: Sequence[Row], task: Task) -> tuple[tuple[str, ...], Callable[[Row], Any]]:
    """The names of the classes or outputs, and how a row's label is written as numbers."""
    if task == "classification":
        classes = sorted({row.label for row in rows})
        number = {name: index for index, name in enumerate(classes)}
        return tuple(classes), lambda row: number[row.label]
    if task == "multilabel":
        classes = sorted({name for row in rows for name in _parts(row.label)})
        return tuple(classes), lambda row: [float(name in _parts(row.label)) for name in classes]

    def numbers(row: Row) -> list[float]:
        try:
            return [float(part) for part in _parts(row.label)]
        except ValueError:
            raise ManifestError(f"{path}: row {row.number} has the label {row.label!r}, which is no number") from None

    counts = {len(numbers(row)) for row in rows}
    if len(counts) != 1:
        raise ManifestError(f"{path}: labels must have the same number of values in all rows, got {sorted(counts)}")
    return tuple(f"output {index}" for index in range(counts.pop())), numbers


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split(";") if part.strip()]
