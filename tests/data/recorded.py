"""Recorded data: the real ones where they are, and small ones of the same form, made up, for everything else."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

SPEAKERS = ("anna", "bert", "carl", "dora", "emil", "fred")


def real_root():
    """The folder with MNIST and FSDD, or a skipped test."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("CROSSMODAL_DATA", beside))
    if not (root / "mnist").is_dir():
        pytest.skip(f"no recorded data in {root} (CROSSMODAL_DATA names the folder)")
    return root


def write_idx(path, values):
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), compresslevel=1))


def make_root(folder, takes=12, images=5600):
    """MNIST of random blots and FSDD of tones; every image and recording is another one."""
    soundfile = pytest.importorskip("soundfile", reason="needs the extra train")
    rng = np.random.default_rng(0)
    (folder / "mnist").mkdir(parents=True)
    for part, count in (("train", images), ("t10k", 300)):
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", rng.integers(0, 10, count))
    sounds = folder / "free-spoken-digit-dataset" / "recordings"
    sounds.mkdir(parents=True)
    for digit in range(10):
        for speaker in SPEAKERS:
            for take in range(takes):
                sound = 0.1 * rng.standard_normal(int(rng.integers(1500, 4000)))
                soundfile.write(sounds / f"{digit}_{speaker}_{take}.wav", sound, 8000)
    return folder
