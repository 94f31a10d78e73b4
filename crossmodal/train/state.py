"""The state of a run on disk: everything that the next step depends on, in one file that is whole or not there."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal._extras import require

DESCRIPTION = "crossmodal"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description, so that at any moment ``path`` is the old file or the new one.

    The new file is written beside its place, flushed to the disk, and then renamed.

    Raises:
        MissingExtraError: when safetensors is not installed.
        OSError: when it cannot be written, such as for want of space; the old file is untouched.
    """
    safetensors = require("safetensors.torch", distribution="safetensors", extra="train")
    # A folder of its own: killed, the library leaves a file there whose name nobody knows.
    folder = path.with_name(f".{path.name}.partial")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    partial = folder / path.name
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        try:
            safetensors.save_file(whole, partial, metadata={DESCRIPTION: json.dumps(description)})
        except _library_error() as error:  # what the library makes of a full disk
            raise OSError(f"{path} could not be written: {error}") from error
        partial.chmod(folder.stat().st_mode & 0o666)  # as other files have it; the library's are for one user
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def flatten(nested: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """``{"a": {"b": tensor}}`` to ``{"prefix/a/b": tensor}``; weights have dots in their names, but no slashes.

    Raises:
        TypeError: for a leaf that is no tensor.
    """
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}/{name}"))
        elif isinstance(value, Tensor):
            flat[f"{prefix}/{name}"] = value
        else:
            raise TypeError(f"{prefix}/{name} must be a tensor, got {type(value).__name__}")
    return flat


def unflatten(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """The inverse of :func:`flatten`; names with another prefix are left out."""
    nested: dict[str, Any] = {}
    for name, tensor in flat.items():
        first, *path = name.split("/")
        if first != prefix:
            continue
        place = nested
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = tensor
    return nested


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """By name: what has to be the same for weights to fit."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def _library_error() -> type[Exception]:
    error: type[Exception] = require("safetensors", distribution="safetensors", extra="train").SafetensorError
    return error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
