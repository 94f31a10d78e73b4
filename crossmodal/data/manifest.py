"""A user's own data: a table of files, texts and labels."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.check_options import check_options
from crossmodal.data.labels import BrokenLabelError, LabelError, classes_of, label_encoder
from crossmodal.data.manifest_dataset import ManifestDataset
from crossmodal.data.reader import Reader, ReaderOptions, make_reader
from crossmodal.data.sample import Dataset, Splits, Task
from crossmodal.data.shards import Shards, find_shards
from crossmodal.data.table import ManifestError, half_a_character, read_table

COLUMNS = ("image", "audio", "text")
LABEL, SPLIT = "label", "split"
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_SHARES = (0.8, 0.1)  # of training and validation, where no column says


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
        raise ValueError(f"options must be among {', '.join(known)}, got {', '.join(map(str, unknown))}")
    listed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    listed.setdefault("strict", strict)
    options = ManifestOptions(**listed)
    check_options(listed)
    if options.task not in _TASKS:
        raise ValueError(f"options: task must be one of {', '.join(_TASKS)}, got {options.task!r}")
    return options


class Row(NamedTuple):
    """One line of a manifest.

    Attributes:
        number: of the line, from 1, the header not counted.
        cells: by column, what is not empty; none where there is a problem.
        label: as it stands there, without white space around it.
        split: ``train``, ``validation``, ``test``, or "" where nothing is said.
        problem: why the row cannot be used, to follow its number; "" where it can.
    """

    number: int
    cells: dict[str, str]
    label: str
    split: str
    problem: str = ""


def read_manifest(path: Path, *, labelled: bool = True) -> list[Row]:
    """The rows of a CSV file with a header, or of a JSONL file of one object a line.

    Columns: ``image``, ``audio`` (paths) and ``text``, of which at least one must be there and any cell may be empty,
    but not all of a row with a label; ``label``; optionally ``split``. Others are ignored, and so are ``label`` and
    ``split`` where no label is needed.

    Args:
        path: ``*.jsonl`` or ``*.ndjson`` in any case is JSONL, everything else CSV.
        labelled: whether a label is needed, and something to learn from.

    Returns:
        All rows, also those that cannot be used: with more cells than columns, half a character, or nothing to learn
        from.

    Raises:
        FileNotFoundError: when there is no such file.
        ManifestError: when a column or a label is missing, or the file is no table.
    """
    if not path.is_file():
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise FileNotFoundError(f"{path}: no such manifest{place}")
    rows = []
    for number, (values, problem) in enumerate(read_table(path), start=1):
        columns = [name for name in COLUMNS if name in values]
        if not columns or (labelled and LABEL not in values):
            wanted = f"at least one of {', '.join(COLUMNS)}" if not columns else LABEL
            raise ManifestError(f"{path}: row {number} has the columns {', '.join(values)}; {wanted} is missing")
        read = [*columns, *(name for name in (LABEL, SPLIT) if labelled and name in values)]
        problem = problem or half_a_character({name: values[name] for name in read})
        cells = {name: values[name] for name in columns if values[name].strip()}
        if labelled and not cells:
            problem = problem or "has nothing to learn from"
        # The cells of a row with a problem may stand in any column.
        rows.append(Row(number, {}, "", "", problem) if problem else _row(path, number, values, cells, labelled))
    if not rows:
        raise ManifestError(f"{path}: holds no rows")
    return rows


def _row(path: Path, number: int, values: Mapping[str, str], cells: dict[str, str], labelled: bool) -> Row:
    label, split = values.get(LABEL, "").strip(), values.get(SPLIT, "").strip().lower()
    if labelled and not label:
        raise ManifestError(f"{path}: row {number} has no label")
    if labelled and split and split not in _SPLITS:
        raise ManifestError(f"{path}: row {number} has the split {split!r}; {', '.join(_SPLITS)} are known")
    return Row(number, cells, label, _SPLITS.get(split, ""))


def manifest_splits(
    path: Path, root: Path | None, options: ManifestOptions, *, seed: int = 0, only: Collection[str] | None = None
) -> Splits:
    """The data sets of a manifest; their description has its digest (:func:`digest_of`).

    Rows without a split are divided 8:1:1 at random, in the same way every time. A tokenizer is learnt from the
    texts of the training rows.

    Args:
        path: see :func:`read_manifest`.
        root: what its paths are relative to; None: its own folder.
        options: how it is read.
        seed: of the augmentation.
        only: modalities that will be used: the cells of others are not looked at, and a row that has none of them is
            skipped. None for all.

    Raises:
        MissingExtraError: when a package that the columns need is not installed.
        FileNotFoundError: when there is no such manifest, or, with ``strict``, no such file.
        ManifestError: see :func:`read_manifest`; also for labels that do not fit the task, empty splits, and modalities
            that no row has.
        BrokenFileError: with ``strict``, for the first file that cannot be used.
    """
    rows = read_manifest(path)
    held = [name for name in COLUMNS if any(name in row.cells for row in rows)]
    if unknown := [name for name in only or () if name not in held]:
        raise ManifestError(f"modalities must be among {', '.join(held)}, got {', '.join(unknown)}")
    rows = _with_cells_of(only, rows)
    root = root or path.parent
    classes = classes_of([row.label for row in rows if not row.problem], options.task)
    labels, problems = _labels(path, rows, options, classes, only)
    sound = [row for row in rows if row.number in labels]
    reader = make_reader([row.cells for row in sound], options)
    # All rows are divided, so that each stays where it is whatever becomes of the files of others.
    divided = _divided(rows)
    if options.verify:
        streamed = {row.number for row in divided["train"]} if options.shards else set()
        problems |= _broken([row for row in sound if row.number not in streamed], root, reader, options.strict)
    skipped = [problems[number] for number in sorted(problems)]
    parts = {name: [row for row in part if row.number not in problems] for name, part in divided.items()}
    if empty := [name for name, part in parts.items() if not part]:
        raise ManifestError(f"{path}: no rows for {', '.join(empty)} ({_why(skipped)})")
    if not classes:
        raise ManifestError(f"{path}: no label of any row holds a name")
    reader.learn_tokens(row.cells["text"] for row in divided["train"] if row.number in labels and "text" in row.cells)

    def dataset(name: str) -> ManifestDataset:
        drawn = seed if name == "train" else None
        return _dataset(path, root, parts[name], labels, reader, options.task, classes, drawn)

    train: Dataset = dataset("train")
    if options.shards:
        train = Shards(
            find_shards(options.shards, root),
            reader,
            label_encoder(classes, options.task),
            task=options.task,
            classes=classes,
            seed=seed,
            strict=options.strict,
            verify=options.verify,
        )
        skipped += train.skipped
    description = {"reader": reader.as_dict(), "skipped": skipped, "digest": digest_of(path)}
    return Splits(train, dataset("validation"), dataset("test"), description)


def digest_of(path: Path) -> str:
    """Of the content of a manifest: the same for the same file, wherever it lies; OSError when there is none."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def training_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the training split of a manifest, by column, for :func:`crossmodal.data.write_shards`.

    With the cells of all modalities and the label as it stands there. Rows that cannot be used as they stand in the
    table are left out; files are not looked at, nor are labels, which depend on the task: rows with broken ones are
    there.

    Raises:
        FileNotFoundError, ManifestError: see :func:`read_manifest`.
    """
    rows = _divided(read_manifest(path))["train"]
    return [{**row.cells, LABEL: row.label} for row in rows if not row.problem]


class Part(NamedTuple):
    """One split, for a trained model.

    Attributes:
        data: not augmented.
        split: which.
        skipped: what was wrong with each row of this split that is left out.
    """

    data: Dataset
    split: str
    skipped: list[str]


def manifest_part(
    path: Path,
    root: Path | None,
    options: ManifestOptions,
    split: str | None,
    *,
    reader: Reader,
    classes: Sequence[str] | None,
    only: Collection[str],
) -> Part:
    """One split as a trained model reads it: with the tokenizer and the classes that it has learnt with.

    Args:
        path, root: see :func:`manifest_splits`.
        options: ``task``, ``strict`` and ``verify`` count.
        split: ``train``, ``validation``, ``test``, or ``all`` rows whatever their split. None: ``test`` where any row
            names a split, otherwise ``all``.
        reader: of the model.
        classes: of the model; a manifest need not have all of them. None: those of the manifest, for a model that knows
            none.
        only: the model's modalities; a row that has none of them is skipped.

    Raises:
        FileNotFoundError, ManifestError, BrokenFileError: see :func:`manifest_splits`; also for labels of the split
            that the model does not know.
    """
    rows = _with_cells_of(only, read_manifest(path))
    root = root or path.parent
    if classes is None:
        classes = classes_of([row.label for row in rows if not row.problem], options.task)
    if split is None:
        split = "test" if any(row.split for row in rows) else "all"
    chosen = rows if split == "all" else _divided(rows)[split]
    labels, problems = _labels(path, chosen, options, classes, only)
    if options.verify:
        problems |= _broken([row for row in chosen if row.number in labels], root, reader, options.strict)
    skipped = [problems[row.number] for row in chosen if row.number in problems]
    part = [row for row in chosen if row.number not in problems]
    if not part:
        raise ManifestError(f"{path}: no rows for {split} ({_why(skipped)})")
    return Part(_dataset(path, root, part, labels, reader, options.task, tuple(classes), None), split, skipped)


def _with_cells_of(only: Collection[str] | None, rows: list[Row]) -> list[Row]:
    """The rows with the cells of these modalities alone; None: with all."""
    if only is None:
        return rows
    return [row._replace(cells={name: cell for name, cell in row.cells.items() if name in only}) for row in rows]


def _dataset(
    path: Path,
    root: Path,
    rows: Sequence[Row],
    labels: Mapping[int, Any],
    reader: Reader,
    task: Task,
    classes: tuple[str, ...],
    seed: int | None,
) -> ManifestDataset:
    return ManifestDataset(
        [row.cells for row in rows],
        [labels[row.number] for row in rows],
        root,
        reader,
        task=task,
        classes=classes,
        names=[f"{path.name} row {row.number}" for row in rows],
        seed=seed,
    )


def _why(skipped: Sequence[str]) -> str:
    return f"{len(skipped)} skipped; the first: {skipped[0]}" if skipped else "0 skipped"


def _labels(
    path: Path, rows: Sequence[Row], options: ManifestOptions, classes: Sequence[str], only: Collection[str] | None
) -> tuple[dict[int, Any], dict[int, str]]:
    """Numbers for the label, by row, and by row what is wrong with the others."""
    encode: Callable[[str], Any] = label_encoder(classes, options.task)
    labels, problems = {}, {}
    for row in rows:
        problem = row.problem
        if not problem and only is not None and not any(name in only for name in row.cells):
            problem = f"has nothing of the modalities {', '.join(only)}"
        try:
            if not problem:
                labels[row.number] = encode(row.label)
        except BrokenLabelError as error:
            problem = f"has the label {row.label!r}, {error}"
        except LabelError as error:
            raise ManifestError(f"{path}: row {row.number} has the label {row.label!r}, {error}") from None
        if problem and options.strict:
            raise ManifestError(f"{path}: row {row.number} {problem}")
        if problem:
            problems[row.number] = f"row {row.number} {problem}"
    return labels, problems


def _broken(rows: Sequence[Row], root: Path, reader: Reader, strict: bool) -> dict[int, str]:
    """What is wrong with the files of a row, by row; every file is read once."""
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
    broken = {}
    for row in rows:
        wrong = [text for name, cell in row.cells.items() if (text := problems.get((name, cell), ""))]
        if wrong:
            broken[row.number] = f"row {row.number}: {'; '.join(wrong)}"
    return broken


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
