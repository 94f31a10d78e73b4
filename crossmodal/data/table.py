"""The rows of CSV and JSONL files, by column, as text."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LONGEST_FIELD = 2**24  # characters; the csv module stops at 131,072


class ManifestError(ValueError):
    """A manifest that cannot be used; the message is one line that begins with its path."""


class Line(NamedTuple):
    """One row of a table.

    Attributes:
        values: by column.
        problem: what is wrong with it, to follow its number; "" where nothing is.
    """

    values: dict[str, str]
    problem: str = ""


def read_table(path: Path) -> Iterator[Line]:
    """The rows of a file; ``*.jsonl`` and ``*.ndjson`` in any case are JSONL, everything else is CSV with a header.

    Raises:
        ManifestError: when it is neither, or two columns have the same name.
    """
    return _read_jsonl(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(path)


def as_text(value: Any) -> str:
    """A value of JSON as it would stand in CSV; an empty list is ``;``, which says that there is nothing in it."""
    if isinstance(value, list):
        return ";".join(map(str, value)) or ";"
    return "" if value is None else str(value)


def half_a_character(values: Mapping[str, str]) -> str:
    r"""What is wrong with cells that JSON wrote as halves of characters, such as ``"\ud83d"``; "" where nothing is.

    Nothing encodes them: neither a tokenizer nor the name of a file.
    """
    for name, value in values.items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"has half a character, \\u{ord(value[error.start]):x}, in {name}"
    return ""


def _read_csv(path: Path) -> Iterator[Line]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            _check_columns(path, columns)
            for values in reader:
                more: Any = values.pop(None, [])  # the key of cells beyond the header
                problem = f"has {len(columns) + len(more)} cells, {len(columns)} columns" if more else ""
                yield Line({name: value or "" for name, value in values.items()}, problem)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: no CSV: {error}") from error


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if twice:
        raise ManifestError(f"{path}: the column {twice[0]} is there {columns.count(twice[0])} times")


def _read_jsonl(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Line(_values(path, number, line))
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: no UTF-8: {error}") from error


def _values(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: line {number} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ManifestError(f"{path}: line {number} must be an object, got {type(values).__name__}")
    return {name: as_text(value) for name, value in values.items()}
