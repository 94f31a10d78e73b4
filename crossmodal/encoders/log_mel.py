"""Log-mel spectrogram: how loud each band of pitch is, frame by frame."""

import math
from typing import overload

import torch
from torch import Tensor, nn

from crossmodal.encoders.padding import zero_padding

_FLOOR = 1e-6  # added to the power; far below speech, and log stays finite in silence


class LogMel(nn.Module):
    """Waveform to log-mel frames.

    Frame t is ``log(M |F(w * x[t * hop : t * hop + window])|^2 + 1e-6)``: F the discrete Fourier transform,
    w the periodic Hann window, log natural, M triangles of height 1 whose corners are equidistant on
    the HTK mel scale ``mel(f) = 2595 log10(1 + f / 700)`` (Young et al., The HTK Book, section 5.4)
    between ``lowest`` Hz and half the sample rate. Frames are not centred and never reach beyond the end.

    Args:
        sample_rate: Hz.
        bands: number of mel bands.
        window: samples per frame, which is also the size of the transform.
        hop: samples from one frame to the next.
        lowest: Hz, where the first triangle starts.
    """

    filters: Tensor
    hann: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        bands: int = 40,
        window: int = 320,
        hop: int = 160,
        lowest: float = 60.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.bands, self.window, self.hop, self.lowest = sample_rate, bands, window, hop, lowest
        filters = mel_filters(sample_rate, bands=bands, window=window, lowest=lowest)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, samples)`` float32 and ``(B,)`` to ``(B, frames, bands)`` and ``(B,)`` int64.

        A sample shorter than one window gets one frame, filled up with silence; length 0 gets none.
        """
        waveform = zero_padding(waveform, lengths)
        missing = max(0, self.window - waveform.shape[1])
        waveform = nn.functional.pad(waveform, (0, missing))
        spectrum = torch.stft(
            waveform,
            self.window,
            self.hop,
            window=self.hann,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (B, window / 2 + 1, frames)
        mel = torch.log(power.transpose(1, 2) @ self.filters.T + _FLOOR)
        frames = (1 + (lengths - self.window).clamp(min=0) // self.hop) * (lengths > 0)
        return mel, frames


def mel_filters(sample_rate: int, *, bands: int, window: int, lowest: float) -> Tensor:
    """The matrix M of :class:`LogMel`, ``(bands, window // 2 + 1)`` float32.

    Raises:
        ValueError: when ``lowest`` does not lie below half the sample rate.
    """
    highest = sample_rate / 2
    if not 0 <= lowest < highest:
        raise ValueError(f"lowest must lie in [0, {highest}), got {lowest}")
    corners = hertz_of(torch.linspace(mel_of(lowest), mel_of(highest), bands + 2, dtype=torch.float64))
    left, peak, right = (corners[k : k + bands].unsqueeze(1) for k in range(3))
    hertz = torch.arange(window // 2 + 1, dtype=torch.float64) * sample_rate / window
    rising, falling = (hertz - left) / (peak - left), (right - hertz) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0).float()


@overload
def mel_of(hertz: float) -> float: ...


@overload
def mel_of(hertz: Tensor) -> Tensor: ...


def mel_of(hertz: float | Tensor) -> float | Tensor:
    """The HTK mel scale."""
    if isinstance(hertz, Tensor):
        return 2595 * torch.log10(1 + hertz / 700)
    return 2595 * math.log10(1 + hertz / 700)


def hertz_of(mels: Tensor) -> Tensor:
    """The inverse of :func:`mel_of`."""
    return 700 * (10 ** (mels / 2595) - 1)
