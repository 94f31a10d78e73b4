"""Reading sound: any format that libsndfile knows, any rate, any number of channels, to one float32 waveform."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from crossmodal._extras import require

LONGEST_SECONDS = 3600.0  # an hour of sound is a mistake in a manifest, and would take the memory of everything else


class BrokenFileError(ValueError):
    """A file that cannot be used; the message is one line that begins with its path."""


def check_there(path: Path) -> None:
    """Refuse the path of no file.

    Raises:
        FileNotFoundError: when there is no such file.
        BrokenFileError: when there can be none, such as of a name that is too long.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise BrokenFileError(f"{path}: {error.strerror}") from error
    if not there:
        raise FileNotFoundError(f"{path}: no such file")


def read_audio(
    path: Path, sample_rate: int, *, longest_seconds: float = LONGEST_SECONDS, content: bytes | None = None
) -> Tensor:
    """One channel of sound.

    Channels are averaged; another rate is resampled by soxr (high quality). Integer formats come in [-1, 1).

    Args:
        path: a file.
        sample_rate: wanted, in Hz.
        longest_seconds: a longer file is refused before it is read.
        content: of the file, where it is not on disk; ``path`` is then its name.

    Returns:
        ``(samples,)`` float32.

    Raises:
        MissingExtraError: when soundfile, or soxr where it is needed, is not installed.
        FileNotFoundError: when there is no such file.
        BrokenFileError: when the file is empty, truncated, of an unknown format, too long, shorter than a sample, or
            holds NaN, Inf or values whose mean is one.
    """
    soundfile = require("soundfile", distribution="soundfile", extra="train")
    if content is None:
        check_there(path)
    try:
        with soundfile.SoundFile(path if content is None else io.BytesIO(content)) as file:
            rate, promised = file.samplerate, file.frames
            if promised > longest_seconds * rate:
                raise BrokenFileError(
                    f"{path}: {promised / rate:.0f} s of sound, at most {longest_seconds:.0f} s is read"
                )
            frames = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BrokenFileError(f"{path}: {error.error_string}") from error
    if len(frames) == 0:
        raise BrokenFileError(f"{path}: holds no sound")
    if len(frames) < promised:
        raise BrokenFileError(f"{path}: truncated, {len(frames)} of {promised} frames")
    if not np.isfinite(frames).all():
        raise BrokenFileError(f"{path}: holds NaN or Inf")
    _check_whole(path, content)
    with np.errstate(over="ignore", invalid="ignore"):
        mono = frames.mean(axis=1)
        if rate != sample_rate:
            soxr = require("soxr", distribution="soxr", extra="train")
            mono = soxr.resample(mono, rate, sample_rate)
    if len(mono) == 0:
        raise BrokenFileError(f"{path}: {len(frames)} frames at {rate} Hz are less than one at {sample_rate} Hz")
    if not np.isfinite(mono).all():
        raise BrokenFileError(f"{path}: values up to {np.abs(frames).max():.1e} overflow float32")
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def _check_whole(path: Path, content: bytes | None) -> None:
    """WAV and AIFF tell their size at their beginning; libsndfile reads what is left of a cut file without a word."""
    if content is None:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    else:
        size, head = len(content), content[:8]
    order: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"FORM": "big"}
    if head[:4] not in order:
        return
    promised = int.from_bytes(head[4:8], order[head[:4]])
    # Programs that write into a pipe cannot know the size, and say 0 or the largest number.
    if promised not in (0, 0xFFFFFFFF) and size < promised:
        raise BrokenFileError(f"{path}: truncated, {size} of {promised + 8} bytes")
