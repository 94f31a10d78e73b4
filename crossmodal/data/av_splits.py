"""How MNIST and the Free Spoken Digit Dataset are divided: no image and no recording is in two splits."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossmodal.data.fsdd import Recording
from crossmodal.data.mnist import load_mnist

PARTS = ("train", "validation", "test")
DATA_SEED = 20260101  # of splits, and of validation and test data: the same for every run
_VALIDATION_IMAGES = 5000
_TAKES = 5  # recordings of each speaker and digit that go to test, and as many to validation


def split_images(root: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
    """By split, pixels ``(N, 784)`` in [0, 1] and labels ``(N,)``: 55,000, 5,000 and 10,000 images.

    Raises:
        FileNotFoundError, ValueError: as :func:`crossmodal.data.mnist.load_mnist`.
    """
    train, test = load_mnist(root, "train"), load_mnist(root, "t10k")
    order = np.random.default_rng(DATA_SEED).permutation(len(train.labels))
    rows = {"train": order[_VALIDATION_IMAGES:], "validation": order[:_VALIDATION_IMAGES]}
    pixels = {part: train.pixels[chosen] for part, chosen in rows.items()} | {"test": test.pixels}
    labels = {part: train.labels[chosen] for part, chosen in rows.items()} | {"test": test.labels}
    return {part: p.reshape(len(p), -1).astype(np.float32) / np.float32(255) for part, p in pixels.items()}, labels


def split_recordings(recordings: list[Recording], fold: int | None = None) -> dict[str, list[Recording]]:
    """By split, the recordings: by take, or by speaker where ``fold`` is the number of the speaker held out for
    test."""
    speakers = sorted({recording.speaker for recording in recordings})
    parts: dict[str, list[Recording]] = {part: [] for part in PARTS}
    for recording in recordings:
        if fold is None:
            place = min(recording.take // _TAKES, 2)
        else:
            place = min((speakers.index(recording.speaker) - fold) % len(speakers), 2)
        parts[("test", "validation", "train")[place]].append(recording)
    return parts
