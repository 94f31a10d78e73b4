"""Image to tokens: a small CNN whose feature map is read as a sequence of patches."""

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count, check_counts
from crossmodal.encoders.lengths import check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding


class ImageEncoder(nn.Module):
    """Image to one token per patch of ``2 x 2`` pixels, row by row; of an odd edge the last patch is half.

    Normalised by group, not by batch: the blank rows of missing images must not move the statistics of
    the images that are there.

    Args:
        size: height and width of the image, in pixels.
        in_channels: 1 for grey, 3 for colour.
        channels: of the features; a multiple of 8.

    Raises:
        ValueError: when ``channels`` is no multiple of 8, or a size is not positive.
    """

    def __init__(self, size: tuple[int, int], in_channels: int = 1, channels: int = 48) -> None:
        super().__init__()
        for edge in size:
            check_count("size", edge)
        check_counts(in_channels=in_channels, channels=channels)
        if channels % 8:
            raise ValueError(f"channels must be a multiple of 8, got {channels}")
        self.grid = (-(-size[0] // 2), -(-size[1] // 2))
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 3, padding=1),
            nn.GroupNorm(4, channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.GroupNorm(8, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.position = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], channels))

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, in_channels, height, width)`` and ``(B,)``, 1 = there, 0 = missing.

        Features are ``(B, patches, channels)``, lengths 0 or the number of patches.
        """
        there = check_there(pixels, lengths)
        blank = zero_padding(pixels.unsqueeze(1), there).squeeze(1)
        patches = self.layers(blank).flatten(2).transpose(1, 2) + self.position
        return EncoderOutput(patches, there * patches.shape[1])
