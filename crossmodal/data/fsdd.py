"""The Free Spoken Digit Dataset: six speakers, each of whom says each digit fifty times."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossmodal.data.audio_file import read_audio

SAMPLE_RATE = 8000
_FOLDER = "free-spoken-digit-dataset/recordings"
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


class Recording(NamedTuple):
    """One spoken digit.

    Attributes:
        waveform: ``(samples,)`` float32 at 8 kHz, root mean square 1.
        digit: what is said.
        speaker: by whom.
        take: which of the speaker's recordings of this digit, from 0.
    """

    waveform: NDArray[np.float32]
    digit: int
    speaker: str
    take: int


def load_fsdd(root: Path) -> list[Recording]:
    """All recordings of ``root/free-spoken-digit-dataset/recordings``, ordered by digit, speaker and take.

    Raises:
        MissingExtraError: when soundfile is not installed.
        FileNotFoundError: when there are none, with the place where they were looked for.
        BrokenFileError: when one cannot be read.
    """
    folder = root / _FOLDER
    named = [(path, match) for path in sorted(folder.glob("*.wav")) if (match := _NAME.fullmatch(path.name))]
    if not named:
        raise FileNotFoundError(f"{folder}: no recordings named like 7_jackson_32.wav")
    recordings = []
    for path, match in named:
        waveform = read_audio(path, SAMPLE_RATE).numpy()
        level = float(np.sqrt(np.mean(waveform**2)))
        digit, speaker, take = match.groups()
        recordings.append(Recording(waveform / np.float32(max(level, 1e-6)), int(digit), speaker, int(take)))
    return sorted(recordings, key=lambda recording: recording[1:])
