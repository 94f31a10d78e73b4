"""Noise that hides speech: other talkers, and noise with the spectrum of speech."""

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]


def pink_noise(samples: int, rng: np.random.Generator) -> Waveform:
    """Noise whose power falls with 1 / frequency, root mean square 1; ``(samples,)`` float32."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def tape_of(waveforms: list[Waveform], rng: np.random.Generator) -> Waveform:
    """All waveforms in random order, end to end: continuous talk, of which a random stretch is one talker."""
    return np.concatenate([waveforms[row] for row in rng.permutation(len(waveforms))])


class Babble:
    """Talkers and pink noise, half of the power each.

    Args:
        waveforms: what the talkers say, root mean square 1 each.
        talkers: how many at a time.
        rng: orders the talk and draws the noise.
    """

    _PINK_SAMPLES = 2**20  # random stretches of it repeat too rarely to be learnt

    def __init__(self, waveforms: list[Waveform], talkers: int, rng: np.random.Generator) -> None:
        self.talkers = talkers
        self._tape = tape_of(waveforms, rng)
        self._pink = pink_noise(self._PINK_SAMPLES, rng)

    def draw(self, samples: int, rng: np.random.Generator) -> Waveform:
        """``(samples,)`` float32, expected power 1."""
        noise = _stretch(self._pink, samples, rng) * np.float32(np.sqrt(0.5))
        share = np.float32(np.sqrt(0.5 / self.talkers))
        for _ in range(self.talkers):
            noise += share * _stretch(self._tape, samples, rng)
        return noise


def _stretch(tape: Waveform, samples: int, rng: np.random.Generator) -> Waveform:
    start = int(rng.integers(len(tape) - samples + 1))
    return tape[start : start + samples]
