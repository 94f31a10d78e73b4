"""What a data set is: samples by number, and what its modalities and its answers look like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

Kind = Literal["image", "audio", "text"]
Task = Literal["classification", "multilabel", "regression", "transcription"]


@dataclass(frozen=True)
class Modality:
    """What the inputs of one modality look like, which is what its encoder has to be built for.

    Attributes:
        kind: an image is ``(channels, height, width)`` float32, audio ``(samples,)`` float32, text ``(tokens,)`` int64.
        size: channels, height, width of an image.
        sample_rate: of audio, in Hz.
        vocabulary: how many token numbers a text may hold; 0 is padding.
    """

    kind: Kind
    size: tuple[int, int, int] | None = None
    sample_rate: int | None = None
    vocabulary: int | None = None


class Question(NamedTuple):
    """An easier question, about one modality alone, that training asks beside the task's own.

    Attributes:
        about: what is asked; modalities that are asked about the same thing have the same answers.
        classes: how many answers there are.
        cells: rows and columns into which an image is divided, with an answer for each cell, row by row; None: one
            answer.
    """

    about: str
    classes: int
    cells: tuple[int, int] | None = None


class Sample(NamedTuple):
    """One sample.

    Attributes:
        inputs: by modality, as :class:`Modality` says; a modality that is not a key is missing.
        label: int64 class index, float32 ``(outputs,)`` for the tasks multilabel and
            regression, or int64 symbols from 1, then -1, for transcription.
        name: where it comes from, for people.
        auxiliary: by modality, the int64 answer to its :class:`Question`, or ``(cells,)`` of them; in training only.
    """

    inputs: dict[str, Tensor]
    label: Tensor
    name: str = ""
    auxiliary: Mapping[str, Tensor] = {}


class Dataset(Protocol):
    """Samples by number. A sample is a function of the epoch and its number alone.

    So any process can make any of them, in any order, and a run that was cut short goes on where it stopped.

    Attributes:
        modalities: in the order of the model's encoders.
        task: what the labels are.
        classes: their names; for regression, the names of the outputs.
        questions: by modality, what its auxiliary label answers; empty without such labels.
    """

    @property
    def modalities(self) -> Mapping[str, Modality]: ...

    @property
    def task(self) -> Task: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def questions(self) -> Mapping[str, Question]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Training data differ from epoch to epoch; validation and test data do not."""


class Splits(NamedTuple):
    """Three data sets without a common source.

    Attributes:
        train, validation, test: see :class:`Dataset`.
        description: what a model needs to read other inputs of the same kind, ready for JSON.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    description: dict[str, Any]
