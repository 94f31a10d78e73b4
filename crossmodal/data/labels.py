"""Labels as they stand in a table to numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from crossmodal.data.sample import Task

_LARGEST = torch.finfo(torch.float32).max


class LabelError(ValueError):
    """A label that cannot be used; the message says what it is, to follow the label itself."""


class BrokenLabelError(LabelError):
    """No number, one that is NaN or beyond float32, or as many as no other row has: its row is as good as broken."""


def classes_of(labels: Sequence[str], task: Task) -> tuple[str, ...]:
    """The names of the classes or outputs.

    Args:
        labels: all there are; the first of numbers tells how many outputs a regression has.
        task: what they are; see :class:`crossmodal.data.manifest.ManifestOptions`.
    """
    if task == "classification":
        return tuple(sorted({label for label in labels if _parts(label)}))
    if task == "multilabel":
        return tuple(sorted({name for label in labels for name in _parts(label)}))
    outputs = next((len(_parts(label)) for label in labels if _numbers(label)), 0)
    return tuple(f"output {index}" for index in range(outputs))


def label_encoder(classes: Sequence[str], task: Task) -> Callable[[str], Any]:
    """How a label is written as numbers: a function that raises :class:`LabelError` for what is no label of these."""
    if task == "classification":
        numbers = {name: index for index, name in enumerate(classes)}
        return lambda label: _class(label, numbers)
    if task == "multilabel":
        return lambda label: _marks(label, classes)
    return lambda label: _values(label, len(classes))


def _class(label: str, numbers: Mapping[str, int]) -> int:
    if label not in numbers:
        raise LabelError(f"which is none of {_some(list(numbers))}")
    return numbers[label]


def _marks(label: str, classes: Sequence[str]) -> list[float]:
    names = set(_parts(label))
    if unknown := sorted(names.difference(classes)):
        raise LabelError(f"of which {unknown[0]} is none of {_some(classes)}")
    return [float(name in names) for name in classes]


def _values(label: str, outputs: int) -> list[float]:
    values = _numbers(label)
    if not values:
        raise BrokenLabelError("which is no number" if _parts(label) else "which holds no number")
    if len(values) != outputs:
        raise BrokenLabelError(f"which is {len(values)} numbers; the first row has {outputs}")
    if not all(abs(value) <= _LARGEST for value in values):
        raise BrokenLabelError("which is not finite in float32")
    return values


def _numbers(label: str) -> list[float]:
    """Those of a label; none where a part of it is no number."""
    try:
        return [float(part) for part in _parts(label)]
    except ValueError:
        return []


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split(";") if part.strip()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
