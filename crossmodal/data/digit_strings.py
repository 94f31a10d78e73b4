"""Number sentences: several digits spoken one after the other in noise, and written in a row.

Definition. A sample is 3 to 5 random digits. Audio: a recording of each (FSDD), root mean square 1, cut to 0.7 s (one
in 28 is longer), 60 to 160 ms apart, in noise as loud as the speech: four talkers of the same split and pink noise,
half of the power each. Image: the digits (MNIST) side by side on a canvas of 28 x 140 pixels, projected onto the first
principal components of the training images as in the hard variant of :mod:`crossmodal.data.av_mnist`. The answer is the
sentence of English number words, letter by letter, such as "three one four". Images and recordings are split as there;
training samples are drawn afresh in every epoch, those of validation and test once and for all.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from crossmodal.data.av_mnist import project
from crossmodal.data.av_splits import DATA_SEED, PARTS, split_images, split_recordings
from crossmodal.data.babble import Babble, Waveform
from crossmodal.data.fsdd import SAMPLE_RATE, Recording, load_fsdd
from crossmodal.data.number_words import LANGUAGES
from crossmodal.data.reader import describe_reader
from crossmodal.data.sample import Modality, Question, Sample, Splits, Task

SYMBOLS = " abcdefghijklmnopqrstuvwxyz"  # numbered from 1
_FEWEST, _MOST = 3, 5
_NONE = 10  # in a place without a digit
_EDGE = 28
_TALKERS, _SNR_DB = 4, 0.0
_LONGEST_WORD = round(0.7 * SAMPLE_RATE)  # batches are padded: one slow word would be paid by all sentences
_GAPS = tuple(round(seconds * SAMPLE_RATE) for seconds in (0.06, 0.16))
_LONGEST = _MOST * 5 + _MOST - 1  # characters: "three" and "seven" have the most letters, and spaces
_COMPONENTS = 4
_SIZES = {"train": 20_000, "validation": 1_000, "test": 2_000}


class DigitStrings:
    """One split; see the top of this file, and :class:`crossmodal.data.sample.Dataset`.

    A label is ``(29,)`` int64: symbols from 1, then -1. Under ``image``, a sample's ``auxiliary`` label tells which
    digit is in each of the five places; 10 is none.
    """

    task: Task = "transcription"
    classes = tuple(SYMBOLS)
    questions: Mapping[str, Question] = MappingProxyType({"image": Question("digit", 11, (1, _MOST))})

    def __init__(
        self,
        pixels: NDArray[np.float32],
        labels: NDArray[np.int64],
        recordings: list[Recording],
        part: str,
        *,
        seed: int,
    ) -> None:
        self.modalities = {
            "image": Modality("image", size=(1, _EDGE, _MOST * _EDGE)),
            "audio": Modality("audio", sample_rate=SAMPLE_RATE),
        }
        self._pixels = pixels.reshape(-1, _EDGE, _EDGE)
        self._rows = [np.flatnonzero(labels == digit) for digit in range(10)]
        self._spoken = [[r.waveform for r in recordings if r.digit == digit] for digit in range(10)]
        self._training, self._size = part == "train", _SIZES[part]
        self._key = [seed if self._training else DATA_SEED, 20 + PARTS.index(part)]
        self._epoch = 0
        self._babble = Babble([r.waveform for r in recordings], _TALKERS, np.random.default_rng(self._key))

    def __len__(self) -> int:
        return self._size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch if self._training else 0

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([*self._key, self._epoch, index])
        digits = rng.integers(10, size=int(rng.integers(_FEWEST, _MOST + 1))).tolist()
        canvas = np.zeros((_EDGE, _MOST * _EDGE), dtype=np.float32)
        for place, digit in enumerate(digits):
            row = self._rows[digit][int(rng.integers(len(self._rows[digit])))]
            canvas[:, place * _EDGE : (place + 1) * _EDGE] = self._pixels[row]
        inputs = {
            "image": torch.from_numpy(canvas).unsqueeze(0),
            "audio": torch.from_numpy(self._speak(digits, rng)),
        }
        sentence = " ".join(LANGUAGES["en"].digits[digit] for digit in digits)
        label = torch.full((_LONGEST,), -1)
        label[: len(sentence)] = torch.tensor([1 + SYMBOLS.index(letter) for letter in sentence])
        places = torch.tensor(digits + [_NONE] * (_MOST - len(digits)))
        return Sample(inputs, label, sentence, {"image": places})

    def _speak(self, digits: list[int], rng: np.random.Generator) -> Waveform:
        parts = [np.zeros(int(rng.integers(_GAPS[0], _GAPS[1])), np.float32)]
        for digit in digits:
            spoken = self._spoken[digit]
            parts.append(spoken[int(rng.integers(len(spoken)))][:_LONGEST_WORD])
            parts.append(np.zeros(int(rng.integers(_GAPS[0], _GAPS[1])), np.float32))
        clean = np.concatenate(parts)
        return clean + np.float32(10 ** (-_SNR_DB / 20)) * self._babble.draw(len(clean), rng)


def digit_strings(root: Path, *, seed: int = 0) -> Splits:
    """The three splits.

    Args:
        root: the folder that holds ``mnist`` and ``free-spoken-digit-dataset``.
        seed: of the training samples; another seed, the same test.

    Raises:
        MissingExtraError: when soundfile is not installed.
        FileNotFoundError: when data are missing, with the place where they were looked for.
        ValueError: when a file is damaged.
    """
    pixels, labels = split_images(root)
    pixels = project(pixels, _COMPONENTS)
    recordings = split_recordings(load_fsdd(root))
    train, validation, test = (DigitStrings(pixels[p], labels[p], recordings[p], p, seed=seed) for p in PARTS)
    return Splits(train, validation, test, {"reader": describe_reader(train.modalities)})
