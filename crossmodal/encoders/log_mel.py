"""Log-mel spectrogram: how loud each band of pitch is, frame by frame."""

import math
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn

from crossmodal._validate import check_counts, check_float, check_tensor
from crossmodal.encoders.lengths import check_sequences
from crossmodal.encoders.padding import zero_padding

_FLOOR = 1e-6  # added to the power; far below speech, and log stays finite in silence
_EXACT = (torch.float32, torch.float64)


class LogMel(nn.Module):
    """Waveform to log-mel frames.

    Frame t is ``log(M |F(w * x[t * hop : t * hop + window])|^2 + 1e-6)``: F the discrete Fourier transform,
    w the periodic Hann window, log natural, M triangles of height 1 whose corners are equidistant on
    the HTK mel scale ``mel(f) = 2595 log10(1 + f / 700)`` (Young et al., The HTK Book, section 5.4)
    between ``lowest`` Hz and half the sample rate. Frames are not centred and never reach beyond the end.

    It stays float32 in a model that is converted to half precision: neither do all Fourier transforms know that, nor
    does the range of float16 hold the power of speech.

    Args:
        sample_rate: Hz.
        bands: number of mel bands.
        window: samples per frame, which is also the size of the transform.
        hop: samples from one frame to the next.
        lowest: Hz, where the first triangle starts.

    Raises:
        ValueError: when ``lowest`` does not lie below half the sample rate, or another number is not positive.
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
        if not sample_rate > 0:
            raise ValueError(f"sample_rate must be above 0, got {sample_rate}")
        check_counts(bands=bands, window=window, hop=hop)
        self.sample_rate, self.bands, self.window, self.hop, self.lowest = sample_rate, bands, window, hop, lowest
        filters = mel_filters(sample_rate, bands=bands, window=window, lowest=lowest)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, samples)`` of floats and ``(B,)`` to ``(B, frames, bands)`` float32 and ``(B,)`` int64.

        A sample shorter than one window gets one frame, filled up with silence; length 0 gets none. In a model of
        float64 frames are float64.

        Raises:
            TypeError: when ``waveform`` is no tensor of floats.
            ValueError: when it is not ``(B, samples)``, or a length lies beyond it or below 0.
        """
        check_tensor("waveform", waveform)
        check_float("waveform", waveform)
        check_sequences("waveform", waveform, lengths)
        hann, filters = self.hann, self.filters
        if hann.dtype not in _EXACT:  # cast behind our back, as sharding with buffers in half precision does
            hann, filters = hann.float(), filters.float()
        waveform = zero_padding(waveform, lengths).to(hann.dtype)
        missing = max(0, self.window - waveform.shape[1])
        waveform = nn.functional.pad(waveform, (0, missing))
        frames = (1 + (lengths - self.window).clamp(min=0) // self.hop) * (lengths > 0)
        if waveform.shape[0] == 0:  # MKL's transform refuses it
            return waveform.new_zeros(0, 1 + (waveform.shape[1] - self.window) // self.hop, self.bands), frames
        spectrum = torch.stft(
            waveform,
            self.window,
            self.hop,
            window=hann,
            center=False,
            return_complex=True,
        )
        squares = torch.view_as_real(spectrum).square()  # of both parts in one pass
        power = squares[..., 0] + squares[..., 1]  # (B, window / 2 + 1, frames)
        mel = torch.log(power.transpose(1, 2) @ filters.T + _FLOOR)
        return mel, frames

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        exact = self.hann, self.filters
        super()._apply(fn, recurse)
        if self.hann.dtype not in _EXACT:
            self.hann, self.filters = (one.to(self.hann.device) for one in exact)
        return self


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
