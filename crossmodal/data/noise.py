"""What makes the digits hard: noisy, half-hidden images and speech among other talkers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def random_normal(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Standard normal float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def damage_images(pixels: Tensor, rng: np.random.Generator, *, sigma: float, hidden: int) -> Tensor:
    """Hide a random square of each image, then add white noise.

    Args:
        pixels: ``(B, 1, height, width)`` float32.
        sigma: standard deviation of the noise, in units of the pixels.
        hidden: edge of the square that is set to 0, in pixels.
    """
    batch, _, height, width = pixels.shape
    top = torch.from_numpy(rng.integers(0, height - hidden + 1, (batch, 1, 1, 1)))
    left = torch.from_numpy(rng.integers(0, width - hidden + 1, (batch, 1, 1, 1)))
    row = torch.arange(height).view(1, 1, -1, 1)
    column = torch.arange(width).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + hidden) & (column >= left) & (column < left + hidden)
    return pixels.masked_fill(inside, 0.0) + sigma * random_normal(pixels.shape, rng)


def play_at_speed(clip: Tensor, speed: float) -> Tensor:
    """Play a clip faster (speed > 1) or slower, pitch and formants included: another mouth, another voice.

    ``(samples,)`` to ``(round(samples / speed),)``, interpolated linearly.
    """
    size = max(1, round(len(clip) / speed))
    return torch.nn.functional.interpolate(clip.view(1, 1, -1), size, mode="linear", align_corners=False).flatten()


def speech_in_noise(
    clip: Tensor,
    tape: Tensor,
    rng: np.random.Generator,
    *,
    snr_db: float,
    talkers: int,
    babble: float,
    margin: int,
) -> Tensor:
    """Put a clip at a random place into white noise and the talk of others.

    Args:
        clip: ``(samples,)``, root mean square 1.
        tape: ``(samples,)`` of continuous speech, root mean square about 1; each talker is a random
            stretch of it.
        snr_db: loudness of the clip over that of noise and talkers together, in dB.
        talkers: how many others talk at a time, at least 1.
        babble: amplitude of all talkers together, as a share of the white noise's.
        margin: silence added around the clip, in samples; a random part of it comes first.

    Returns:
        ``(len(clip) + margin,)`` float32.
    """
    length = len(clip) + margin
    mixture = random_normal((length,), rng)
    for start in rng.integers(len(tape) - length + 1, size=talkers):
        mixture.add_(tape[start : start + length], alpha=babble / talkers**0.5)
    mixture *= 10 ** (-snr_db / 20) / (1 + babble**2) ** 0.5
    start = rng.integers(margin + 1)
    mixture[start : start + len(clip)] += clip
    return mixture
