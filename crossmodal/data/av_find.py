"""AV-Find: nine handwritten digits on a canvas, one of them spoken or written; where is it?

Definition. A canvas of 96 x 96 pixels has 3 x 3 cells of 32 x 32; each holds one MNIST image, all of different digits,
0 to 4 pixels from the cell's upper left corner in each direction. The query is one of the nine, spoken (a recording of
FSDD in white noise at 20 dB) or written (its English word, spelt letter by letter). The answer is the cell, 0 to 8, row
by row. Images and recordings are split as in :mod:`crossmodal.data.av_mnist` (clean). Training canvases are drawn
afresh in every epoch; those of validation and test are drawn once and for all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from crossmodal.data.av_splits import DATA_SEED, PARTS, split_images, split_recordings
from crossmodal.data.fsdd import SAMPLE_RATE, Recording, load_fsdd
from crossmodal.data.number_words import LANGUAGES
from crossmodal.data.reader import describe_reader
from crossmodal.data.sample import Modality, Question, Sample, Splits, Task

EDGE, CELL, GRID = 96, 32, 3
Query = Literal["audio", "text"]
_NOISE = 10 ** (-20 / 20)
_LARGEST_JITTER = 4
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SIZES = {"train": 20_000, "validation": 2_000, "test": 5_000}


class AvFind:
    """One split of AV-Find; see the top of this file, and :class:`crossmodal.data.sample.Dataset`.

    A sample's ``auxiliary`` labels are answers to easier questions: under the query's name, which digit it is; under
    ``image``, which digit is in each cell. Neither says where the digit asked for is.
    """

    task: Task = "classification"
    classes = tuple(f"row {cell // GRID} column {cell % GRID}" for cell in range(GRID * GRID))

    def __init__(
        self,
        pixels: NDArray[np.float32],
        labels: NDArray[np.int64],
        recordings: list[Recording],
        part: str,
        *,
        query: Query,
        seed: int,
    ) -> None:
        asked = (
            Modality("audio", sample_rate=SAMPLE_RATE)
            if query == "audio"
            else Modality("text", vocabulary=len(_LETTERS) + 1)
        )
        self.modalities: Mapping[str, Modality] = {"image": Modality("image", size=(1, EDGE, EDGE)), query: asked}
        self.questions: Mapping[str, Question] = {
            "image": Question("digit", 10, (GRID, GRID)),
            query: Question("digit", 10),
        }
        self._pixels = pixels.reshape(-1, 28, 28)
        self._rows = [np.flatnonzero(labels == digit) for digit in range(10)]
        self._spoken = [[r.waveform for r in recordings if r.digit == digit] for digit in range(10)]
        self._query = query
        self._training = part == "train"
        self._size = _SIZES[part]
        self._key = [seed if self._training else DATA_SEED, 10 + PARTS.index(part)]
        self._epoch = 0

    def __len__(self) -> int:
        return self._size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch if self._training else 0

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([*self._key, self._epoch, index])
        digits = rng.permutation(10)[: GRID * GRID]
        cell = int(rng.integers(GRID * GRID))
        canvas = self._draw(digits, rng)
        asked = int(digits[cell])
        inputs = {"image": torch.from_numpy(canvas).unsqueeze(0)}
        if self._query == "audio":
            spoken = self._spoken[asked]
            waveform = spoken[int(rng.integers(len(spoken)))]
            noise = rng.standard_normal(len(waveform), dtype=np.float32)
            inputs["audio"] = torch.from_numpy(waveform + np.float32(_NOISE) * noise)
        else:
            word = LANGUAGES["en"].digits[asked]
            inputs["text"] = torch.tensor([1 + _LETTERS.index(letter) for letter in word])
        return Sample(inputs, torch.tensor(cell), f"{index}", self._answers(digits, asked))

    def _answers(self, digits: NDArray[np.int64], asked: int) -> dict[str, torch.Tensor]:
        return {"image": torch.from_numpy(digits), self._query: torch.tensor(asked)}

    def _draw(self, digits: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        canvas = np.zeros((EDGE, EDGE), dtype=np.float32)
        shifts = rng.integers(_LARGEST_JITTER + 1, size=(len(digits), 2))
        for cell, digit in enumerate(digits):
            rows = self._rows[digit]
            top = CELL * (cell // GRID) + shifts[cell, 0]
            left = CELL * (cell % GRID) + shifts[cell, 1]
            canvas[top : top + 28, left : left + 28] = self._pixels[rows[int(rng.integers(len(rows)))]]
        return canvas


def av_find(root: Path, query: Query = "audio", *, seed: int = 0) -> Splits:
    """The three splits.

    Args:
        root: the folder that holds ``mnist`` and ``free-spoken-digit-dataset``.
        query: ``"audio"``, spoken, or ``"text"``, written.
        seed: of the training canvases; another seed, the same test.

    Raises:
        MissingExtraError: when soundfile is not installed.
        FileNotFoundError: when data are missing, with the place where they were looked for.
        ValueError: when a file is damaged, or for an unknown query.
    """
    if query not in get_args(Query):
        raise ValueError(f"query must be one of {', '.join(get_args(Query))}, got {query!r}")
    pixels, labels = split_images(root)
    recordings = split_recordings(load_fsdd(root))
    train, validation, test = (AvFind(pixels[p], labels[p], recordings[p], p, query=query, seed=seed) for p in PARTS)
    words = {"words": list(_LETTERS), "letters": True, "unknown": False}
    return Splits(
        train, validation, test, {"reader": describe_reader(train.modalities, words if query == "text" else None)}
    )
