"""Stripes of silence over a spectrogram, in training (SpecAugment; Park et al., arXiv 1904.08779, without warping)."""

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count


class SpecAugment(nn.Module):
    """Hides random bands and random stretches of time; does nothing in evaluation mode.

    Args:
        bands: the widest stripe of frequency, in bands.
        frames: the widest stripe of time, in frames.
        stripes: how many of each kind.

    Raises:
        ValueError: when one of them is below 0.
    """

    def __init__(self, bands: int = 8, frames: int = 15, stripes: int = 1) -> None:
        super().__init__()
        for name, value in (("bands", bands), ("frames", frames), ("stripes", stripes)):
            check_count(name, value, 0)
        self.bands, self.frames, self.stripes = bands, frames, stripes

    def forward(self, mel: Tensor) -> Tensor:
        """``(B, frames, bands)`` to the same, hidden cells 0, which is the mean of a standardised spectrogram."""
        if not self.training:
            return mel
        hidden = torch.zeros(1, 1, 1, dtype=torch.bool, device=mel.device)
        for _ in range(self.stripes):
            hidden = hidden | _stripe(len(mel), mel.shape[1], self.frames, mel.device).unsqueeze(2)
            hidden = hidden | _stripe(len(mel), mel.shape[2], self.bands, mel.device).unsqueeze(1)
        return torch.where(hidden, mel.new_zeros(()), mel)  # half the passes of masked_fill


def _stripe(batch: int, size: int, widest: int, device: torch.device) -> Tensor:
    """``(batch, size)`` bool: a stripe of 0 to ``widest`` cells at a random place."""
    width = torch.randint(min(widest, size) + 1, (batch, 1), device=device)
    start = (torch.rand(batch, 1, device=device) * (size - width + 1)).long()
    at = torch.arange(size, device=device)
    return (at >= start) & (at < start + width)
