"""AV-MNIST: a handwritten digit of MNIST and the same digit spoken in the Free Spoken Digit Dataset, paired by label.

Definition. 55,000 of MNIST's training images are for training, 5,000 for validation, its 10,000 test images for test;
each is paired with a recording of its digit, drawn afresh for every epoch of training and once and for all for
validation and test. Given the digit, image and recording are independent. No recording and no image is in two splits:

``clean``    test takes the recordings 0-4 of every speaker and digit (FSDD's own test set), validation 5-9, training
             the rest. Recordings are whole.
``speaker``  as clean, but training, validation and test hear different people: of the six speakers in alphabetical
             order, number ``fold`` is for test and the next one for validation.
``hard``     the recordings as in clean. The image is projected onto the first four principal components of the
             training images, and back to pixels. The recording is set to root mean square 1, cut to 0.9 s, and starts
             at 0.1 s (in training up to 25 ms earlier or later: the onset is what tells the speaker from the
             talkers) of
             one second of noise that is 5 dB louder: four talkers of the same split, at random places of a tape of all
             recordings, and pink noise, half of the power each.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from crossmodal.data.av_splits import DATA_SEED, PARTS, split_images, split_recordings
from crossmodal.data.babble import Babble, Waveform
from crossmodal.data.fsdd import SAMPLE_RATE, Recording, load_fsdd
from crossmodal.data.reader import describe_reader
from crossmodal.data.sample import Modality, Question, Sample, Splits, Task

Variant = Literal["clean", "speaker", "hard"]
_COMPONENTS = 4
_SNR_DB = -5.0
_TALKERS = 4
_ONSET, _JITTER, _LONGEST, _WINDOW = (round(seconds * SAMPLE_RATE) for seconds in (0.1, 0.025, 0.9, 1.0))


class AvMnist:
    """One split of AV-MNIST; see the top of this file, and :class:`crossmodal.data.sample.Dataset`.

    Args:
        pixels: ``(N, 784)`` float32.
        labels: ``(N,)``.
        recordings: those of this split.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        hard: put the recording into noise.
        seed: of what changes from epoch to epoch.
        only: these modalities; None for both. Those left out are not made, and change nothing in the others.
    """

    task: Task = "classification"
    classes = tuple("0123456789")
    questions: Mapping[str, Question] = MappingProxyType({})

    def __init__(
        self,
        pixels: NDArray[np.float32],
        labels: NDArray[np.int64],
        recordings: list[Recording],
        part: str,
        *,
        hard: bool,
        seed: int,
        only: Collection[str] | None = None,
    ) -> None:
        self.modalities = {
            "image": Modality("image", size=(1, 28, 28)),
            "audio": Modality("audio", sample_rate=SAMPLE_RATE),
        }
        self._made = set(self.modalities if only is None else only)
        self._pixels, self._labels = pixels, labels
        self._spoken = [[r.waveform for r in recordings if r.digit == digit] for digit in range(10)]
        self._training, self._snr_db = part == "train", _SNR_DB
        self._key = [seed if self._training else DATA_SEED, PARTS.index(part)]
        self._epoch = 0
        self._babble = None
        if hard:
            rng = np.random.default_rng([DATA_SEED, PARTS.index(part)])
            self._babble = Babble([r.waveform for r in recordings], _TALKERS, rng)

    def at_snr(self, snr_db: float) -> "AvMnist":
        """The same samples, of the hard variant, with speech of another loudness in the noise."""
        other = copy.copy(self)
        other._snr_db = snr_db
        return other

    def __len__(self) -> int:
        return len(self._labels)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch if self._training else 0

    def __getitem__(self, index: int) -> Sample:
        digit = int(self._labels[index])
        inputs = {}
        if "image" in self._made:
            inputs["image"] = torch.from_numpy(self._pixels[index]).view(1, 28, 28)
        if "audio" in self._made:
            inputs["audio"] = torch.from_numpy(self._speak(digit, index))
        return Sample(inputs, torch.tensor(digit), f"{index}")

    def _speak(self, digit: int, index: int) -> Waveform:
        rng = np.random.default_rng([*self._key, self._epoch, index])
        spoken = self._spoken[digit]
        waveform = spoken[int(rng.integers(len(spoken)))]
        return self._drown(waveform, self._babble, rng) if self._babble else waveform

    def _drown(self, waveform: Waveform, babble: Babble, rng: np.random.Generator) -> Waveform:
        onset = _ONSET + (int(rng.integers(-_JITTER, _JITTER + 1)) if self._training else 0)
        noisy = babble.draw(_WINDOW, rng) * np.float32(10 ** (-self._snr_db / 20))
        word = waveform[: min(_LONGEST, _WINDOW - onset)]
        noisy[onset : onset + len(word)] += word
        return noisy


def av_mnist(
    root: Path,
    variant: Variant = "clean",
    *,
    seed: int = 0,
    fold: int = 0,
    only: Collection[str] | None = None,
) -> Splits:
    """The three splits.

    Args:
        root: the folder that holds ``mnist`` and ``free-spoken-digit-dataset``.
        variant: see the top of this file.
        seed: of the pairs and the noise in training; another seed, the same test.
        fold: which speakers are held out, for the variant ``speaker``.
        only: see :class:`AvMnist`.

    Raises:
        MissingExtraError: when soundfile is not installed.
        FileNotFoundError: when data are missing, with the place where they were looked for.
        ValueError: when a file is damaged, or for an unknown variant.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    pixels, labels = split_images(root)
    if variant == "hard":
        pixels = project(pixels, _COMPONENTS)
    recordings = split_recordings(load_fsdd(root), fold if variant == "speaker" else None)
    train, validation, test = (
        AvMnist(
            pixels[part],
            labels[part],
            recordings[part],
            part,
            hard=variant == "hard",
            seed=seed,
            only=only,
        )
        for part in PARTS
    )
    return Splits(train, validation, test, {"reader": describe_reader(train.modalities)})


def project(pixels: dict[str, NDArray[np.float32]], components: int) -> dict[str, NDArray[np.float32]]:
    """Onto the first principal components of the training images."""
    mean = pixels["train"].mean(axis=0)
    centred = pixels["train"] - mean
    # eigh sorts upwards; float64, because the covariance of 55,000 images loses digits in float32.
    covariance = centred.T.astype(np.float64) @ centred
    basis = np.linalg.eigh(covariance)[1][:, -components:].astype(np.float32)
    return {part: (p - mean) @ basis @ basis.T + mean for part, p in pixels.items()}
