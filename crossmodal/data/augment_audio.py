"""Random changes of sound that leave its meaning alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class AudioAugment:
    """Gain and noise; for what is done to spectrograms see :class:`crossmodal.encoders.SpecAugment`.

    Attributes:
        gain_db: louder or softer by at most this, in dB.
        snr_db: white noise this many dB below the sound, drawn between the two; None adds none.
    """

    gain_db: float = 0.0
    snr_db: tuple[float, float] | None = None

    def __call__(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """``(samples,)`` to the same."""
        if self.snr_db is not None:
            noise = torch.from_numpy(rng.standard_normal(len(waveform), dtype=np.float32))
            waveform = mix_at_snr(waveform, noise, float(rng.uniform(*self.snr_db)))
        if self.gain_db:
            waveform = waveform * 10 ** (float(rng.uniform(-self.gain_db, self.gain_db)) / 20)
        return waveform


def mix_at_snr(waveform: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """``waveform + g noise``, g such that 10 log10 of the ratio of their mean squares is ``snr_db``.

    Silence stays silence: nothing is that many dB below it.
    """
    power, noise_power = waveform.square().mean(), noise.square().mean()
    gain = (power / noise_power.clamp(min=1e-20)).sqrt() * 10 ** (-snr_db / 20)
    return waveform + gain * noise
