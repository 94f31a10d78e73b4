"""Spoken digits: every digit in several languages, voices, speeds and pitches, by eSpeak NG."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossmodal.data.espeak import Espeak
from crossmodal.data.number_words import LANGUAGES

SAMPLE_RATE = 11025  # Hz, half of eSpeak's; speech above 5.5 kHz tells no digits apart

# eSpeak's variants that sound like people: no robots, whisperers or echo chambers.
VOICES: dict[str, tuple[str, ...]] = {
    "male": tuple("m1 m2 m3 m4 m5 m6 m7 m8 Andy Denis Lee antonio".split()),
    "female": tuple("f1 f2 f3 f4 f5 Andrea Annie anika belinda linda steph aunty".split()),
}
RATES = (130, 190)  # words per minute
PITCHES = (30, 65)  # 0 to 99


class SpokenDigits(NamedTuple):
    """Clips and what is said in them.

    Attributes:
        clips: N waveforms, each ``(samples,)`` float32 at :data:`SAMPLE_RATE`, root mean square 1,
            without silence at the ends.
        labels: ``(N,)`` int64 in [0, 9].
        languages: N keys of :data:`crossmodal.data.number_words.LANGUAGES`.
        voices: N names out of :data:`VOICES`.
    """

    clips: list[Tensor]
    labels: Tensor
    languages: list[str]
    voices: list[str]

    def spoken_by(self, voices: Sequence[str]) -> "SpokenDigits":
        """The clips of some voices."""
        rows = [row for row, voice in enumerate(self.voices) if voice in voices]
        return SpokenDigits(
            [self.clips[row] for row in rows],
            self.labels[rows],
            [self.languages[row] for row in rows],
            [self.voices[row] for row in rows],
        )


def synthesize_spoken_digits(
    voices: Sequence[str],
    *,
    languages: Sequence[str] = tuple(LANGUAGES),
    rates: Sequence[int] = RATES,
    pitches: Sequence[int] = PITCHES,
) -> SpokenDigits:
    """Speak all digits in every combination, about a millisecond a clip. The same call, the same samples.

    Raises:
        MissingExtraError: when ``espeakng-loader`` is not installed.
        EspeakError: when the speech library does not work.
    """
    clips, labels, languages_spoken, voices_heard = [], [], [], []
    with Espeak() as espeak:
        for language, voice, rate, pitch in product(languages, voices, rates, pitches):
            for digit, word in enumerate(LANGUAGES[language].digits):
                sound = espeak.say(word, voice=f"{language}+{voice}", rate=rate, pitch=pitch)
                clips.append(torch.from_numpy(_prepare(sound.astype(np.float32))))
                labels.append(digit)
                languages_spoken.append(language)
                voices_heard.append(voice)
    return SpokenDigits(clips, torch.tensor(labels), languages_spoken, voices_heard)


def split_voices(
    voices: Mapping[str, Sequence[str]], held_out: int, seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Train, validation and test voices; no voice is in two of them.

    Args:
        voices: names by kind of voice, :data:`VOICES`.
        held_out: how many of each kind go to validation, and as many to test.
        seed: of the shuffle.

    Raises:
        ValueError: when a kind would have no voice left for training.
    """
    rng = np.random.default_rng(seed)
    train: list[str] = []
    validation: list[str] = []
    test: list[str] = []
    for kind, names in voices.items():
        if len(names) <= 2 * held_out:
            raise ValueError(
                f"held_out must leave a {kind} voice for training, got {held_out} + {held_out} of {len(names)}"
            )
        shuffled = [str(name) for name in rng.permutation(list(names))]
        validation += shuffled[:held_out]
        test += shuffled[held_out : 2 * held_out]
        train += shuffled[2 * held_out :]
    return train, validation, test


def _prepare(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve the sample rate, cut the silence, set the loudness."""
    sound = np.convolve(sound, _HALF_BAND, mode="same")[::2]
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    return sound / np.sqrt(np.mean(sound**2))


def _half_band_filter() -> NDArray[np.float32]:
    """Low-pass at half the Nyquist frequency: a sinc of 63 taps under a Hann window, sum 1."""
    taps = np.sinc(np.arange(-31, 32) / 2) * np.hanning(63)
    return (taps / taps.sum()).astype(np.float32)


_HALF_BAND = _half_band_filter()
