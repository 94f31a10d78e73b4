"""MNIST from its IDX files."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FOLDER = "mnist"
_UNSIGNED_BYTE = 8  # the IDX code of the only element type that MNIST uses


class Mnist(NamedTuple):
    """Handwritten digits.

    Attributes:
        pixels: ``(N, 28, 28)`` uint8, ink is 255.
        labels: ``(N,)`` int64 in [0, 9].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_mnist(root: Path, part: str) -> Mnist:
    """The images of ``root/mnist``.

    Args:
        root: the folder that holds ``mnist`` with the four ``*-ubyte.gz`` files.
        part: ``"train"``, 60,000 images, or ``"t10k"``, 10,000.

    Raises:
        FileNotFoundError: when a file is not there, with the place where it was looked for.
        ValueError: when a file is damaged, or images and labels differ in number.
    """
    folder = root / _FOLDER
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if len(pixels) != len(labels):
        raise ValueError(f"{folder} holds {len(pixels)} images and {len(labels)} labels of {part}")
    return Mnist(pixels, labels.astype(np.int64))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of unsigned bytes from a gzipped IDX file (format: yann.lecun.com/exdb/mnist).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, not gzip, or holds something else.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[4 + 4 * d : 8 + 4 * d], "big") for d in range(dimensions))
    if len(data) - start != np.prod(shape):
        raise ValueError(f"{path} is damaged: {len(data) - start} bytes for an array of shape {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
