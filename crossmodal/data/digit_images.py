"""Handwritten digits: the 1,797 scans of 8 x 8 pixels that come with scikit-learn."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossmodal._extras import require

_BRIGHTEST = 16.0


class DigitImages(NamedTuple):
    """Images and what they show.

    Attributes:
        pixels: ``(N, 1, 8, 8)`` float32 in [0, 1], ink is 1.
        labels: ``(N,)`` int64 in [0, 9].
        rows: ``(N,)`` int64, each image's row in scikit-learn's table.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor


def load_digit_images() -> DigitImages:
    """All images, in scikit-learn's order.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
    """
    table = require("sklearn.datasets", distribution="scikit-learn", extra="demo").load_digits()
    pixels = torch.from_numpy(table.images.astype(np.float32) / _BRIGHTEST).unsqueeze(1)
    labels = torch.from_numpy(table.target.astype(np.int64))
    return DigitImages(pixels, labels, torch.arange(len(labels)))


def split_digit_images(
    images: DigitImages, sizes: tuple[int, int], seed: int
) -> tuple[DigitImages, DigitImages, DigitImages]:
    """Train, validation and the rest for test; no image is in two of them.

    Args:
        images: what to split.
        sizes: how many go to train and to validation.
        seed: of the shuffle.

    Raises:
        ValueError: when nothing would be left for test.
    """
    train, validation = sizes
    if train + validation >= len(images.labels):
        raise ValueError(f"sizes must leave images for test, got {train} + {validation} of {len(images.labels)}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images.labels)))
    parts = order.split([train, validation, len(order) - train - validation])
    first, second, third = (DigitImages(*(field[part] for field in images)) for part in parts)
    return first, second, third
