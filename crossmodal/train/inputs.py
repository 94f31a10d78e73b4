"""Files and manifests to samples that a trained model can read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.manifest import read_manifest
from crossmodal.data.reader import Reader, reader_from
from crossmodal.data.sample import Sample

_SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au"),
    "text": (".txt",),
}
_MANIFESTS = (".csv", ".jsonl", ".ndjson")


def kind_of(path: Path) -> str:
    """``image``, ``audio``, ``text`` or ``manifest``, by the end of the name.

    Raises:
        ValueError: for any other end.
    """
    suffix = path.suffix.lower()
    if suffix in _MANIFESTS:
        return "manifest"
    for kind, known in _SUFFIXES.items():
        if suffix in known:
            return kind
    every = sorted({end for ends in (*_SUFFIXES.values(), _MANIFESTS) for end in ends})
    raise ValueError(f"{path}: the end of the name must be one of {' '.join(every)}")


class Inputs:
    """Reads what a model is asked about; a broken file is named and skipped, or stops with ``strict``.

    Args:
        description: of the model; see :func:`crossmodal.train.model.load_model`.
        root: what the paths of a manifest are relative to; None: its own folder.
        strict: raise for the first file that cannot be used.

    Attributes:
        skipped: what was wrong with each file or row that was skipped.
    """

    def __init__(self, description: dict[str, Any], *, root: Path | None = None, strict: bool = False) -> None:
        self.reader: Reader = reader_from(description["data"]["reader"])
        self.modalities = tuple(description["modalities"])
        self.needed = "audio" if description["kind"] == "transcriber" else None  # it spells nothing else
        self.root, self.strict = root, strict
        self.skipped: list[str] = []

    def samples(self, paths: Sequence[Path], *, together: bool = False) -> Iterator[Sample]:
        """One sample per file, or per row of a manifest.

        Args:
            paths: files and manifests.
            together: all files are parts of one and the same sample.

        Raises:
            FileNotFoundError, ValueError: for files that do not exist or cannot be used, with ``strict``; for a
                manifest or a kind of file that cannot be used, and for two files of a kind ``together``, in any case.
        """
        rows: list[tuple[str, dict[str, str] | str, Path | None]] = []  # None: the cells are files, the text's too
        parts: dict[str, str] = {}
        for path in paths:
            kind = kind_of(path)
            if kind == "manifest":
                root = self.root or path.parent
                for row in read_manifest(path, labelled=False):
                    rows.append((f"{path} row {row.number}", row.problem or row.cells, root))
            elif not together:
                rows.append((str(path), {kind: str(path)}, None))
            elif kind in parts:
                raise ValueError(f"files of one sample must differ in kind, got {parts[kind]} and {path}")
            else:
                parts[kind] = str(path)
        if parts:
            rows.append((" + ".join(parts.values()), parts, None))
        for name, cells, folder in rows:
            sample = self._read(name, cells, folder)
            if sample is not None:
                yield sample

    def _read(self, name: str, cells: dict[str, str] | str, root: Path | None) -> Sample | None:
        inputs = {}
        try:
            if isinstance(cells, str):
                raise BrokenFileError(f"{name} {cells}")
            for kind, cell in cells.items():
                if kind not in self.modalities:
                    continue
                if kind == "text" and root is None:
                    cell = _text(Path(cell))
                values = self.reader.read(kind, cell, root or Path())
                if kind != "text" or len(values):
                    inputs[kind] = values
            if not inputs:
                raise BrokenFileError(f"{name}: nothing of the modalities {', '.join(self.modalities)}")
            if self.needed and self.needed not in inputs:
                raise BrokenFileError(f"{name}: nothing of {self.needed}, which is spelt")
        except (BrokenFileError, FileNotFoundError) as error:
            if self.strict:
                raise
            self.skipped.append(str(error))
            return None
        return Sample(inputs, torch.tensor(0), name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"{path}: no UTF-8: {error}") from error
