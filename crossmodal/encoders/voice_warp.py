"""Other voices from a spectrogram, in training: its axes of pitch and time stretched at random."""

import math

import torch
from torch import Tensor, nn

from crossmodal.encoders.log_mel import LogMel, hertz_of, mel_of


class VoiceWarp(nn.Module):
    """The same word by a longer or shorter vocal tract, at another speed; does nothing in evaluation mode.

    Every frequency of a sample is multiplied by one factor (vocal tract length perturbation; Jaitly and Hinton, 2013),
    and its time by another, both drawn anew for each sample, as often above 1 as below. Between bands and between
    frames values are interpolated; frequencies beyond the lowest and the highest band have the value of that band.

    Args:
        log_mel: what the spectrograms come from.
        tract: the largest change of frequencies: the factor lies between ``1 / (1 + tract)`` and ``1 + tract``.
        tempo: the largest change of speed, likewise.

    Raises:
        ValueError: when a change is below 0.
    """

    def __init__(self, log_mel: LogMel, tract: float = 0.2, tempo: float = 0.2) -> None:
        super().__init__()
        if not (0 <= tract < math.inf and 0 <= tempo < math.inf):
            raise ValueError(f"tract and tempo must be 0 or more, got {tract} and {tempo}")
        self.tract, self.tempo = tract, tempo
        self.lowest, self.highest = mel_of(log_mel.lowest), mel_of(log_mel.sample_rate / 2)

    def forward(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, frames, bands)`` and ``(B,)`` to the same, of another number of frames."""
        if not self.training or not len(mel):
            return mel, frames
        return warp_time(self._pitched(mel), frames, _factors(len(mel), self.tempo, mel.device))

    def _pitched(self, mel: Tensor) -> Tensor:
        factors = _factors(len(mel), self.tract, mel.device)
        bands = mel.shape[2]
        step = (self.highest - self.lowest) / (bands + 1)
        centres = self.lowest + step * torch.arange(1, bands + 1, device=mel.device)
        wanted = mel_of(factors.unsqueeze(1) * hertz_of(centres))  # (B, bands)
        return _between(mel, ((wanted - self.lowest) / step - 1).clamp(0, bands - 1), 2)


def warp_time(mel: Tensor, frames: Tensor, speeds: Tensor) -> tuple[Tensor, Tensor]:
    """Play spectrograms at other speeds.

    Args:
        mel: ``(B, frames, bands)``.
        frames: ``(B,)`` int64, how many are real.
        speeds: ``(B,)``; 2 leaves half of the frames.

    Returns:
        The same; a sample of no frames keeps none, any other has at least one.
    """
    last = (frames - 1).clamp(min=0)
    left = ((last / speeds).floor().long() + 1) * (frames > 0)
    at = torch.arange(max(1, int(left.max())), device=mel.device) * speeds.unsqueeze(1)  # (B, new frames)
    return _between(mel, torch.minimum(at, last.unsqueeze(1)), 1), left


def _factors(count: int, largest: float, device: torch.device) -> Tensor:
    """``(count,)`` between ``1 / (1 + largest)`` and ``1 + largest``, uniform in the logarithm."""
    return torch.exp((2 * torch.rand(count, device=device) - 1) * math.log1p(largest))


def _between(values: Tensor, places: Tensor, dim: int) -> Tensor:
    """Values at places between their indices along ``dim``, of each sample its own places ``(B, new size)``."""
    lower = places.floor().long()
    upper = (lower + 1).clamp(max=values.shape[dim] - 1)
    shape = list(values.shape)
    shape[dim] = places.shape[1]
    other = 3 - dim  # of a batch of matrices
    low, high = (values.gather(dim, index.unsqueeze(other).expand(shape)) for index in (lower, upper))
    return torch.lerp(low, high, (places - lower).unsqueeze(other).to(values.dtype))
