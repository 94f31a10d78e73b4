"""Image to tokens: a small residual network (He et al., arXiv 1512.03385) whose last feature map is read as tokens."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count, check_counts
from crossmodal.encoders.lengths import check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding

Normalize = Literal["token", "image"]
_GROUP = 8  # channels normalised together; a few more where it does not divide them


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, normalised by group: no sample moves another one's statistics.

    Args:
        inner, outer: channels before and after; ``outer`` is at least 8 and divisible by ``outer // 8``.
        stride: of the first convolution.
    """

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.GroupNorm(outer // _GROUP, outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.GroupNorm(outer // _GROUP, outer),
        )
        same = inner == outer and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """``(B, inner, height, width)`` to ``(B, outer, height / stride, width / stride)``."""
        return torch.relu(self.shortcut(values) + self.layers(values))


class ResNetEncoder(nn.Module):
    """Image to one token per cell of the last feature map, row by row.

    Args:
        size: height and width of the image, in pixels.
        in_channels: 1 for grey, 3 for colour.
        widths: channels of the stages, each at least 8 and divisible by ``width // 8``, as multiples of 8 are; every
            stage but the first halves height and width.
        stem: stride of the first convolution.
        channels: of the features.
        normalize: ``"token"``, each token over its channels; ``"image"``, each channel over the places of the image:
            what all places share is taken out, and what differs between them, which is what a model that has to find
            something needs, cannot be drowned by it.
        position: standard deviation of the learned position embedding at first, beside content normalised to 1: what
            is there and where it is must both be seen for attention to point at it.

    Attributes:
        grid: rows and columns of the tokens.

    Raises:
        ValueError: for an unknown ``normalize``, no ``widths`` or one that cannot be, or a number that is too small.
    """

    def __init__(
        self,
        size: tuple[int, int],
        in_channels: int = 1,
        *,
        widths: Sequence[int] = (24, 48),
        stem: int = 2,
        channels: int = 48,
        normalize: Normalize = "token",
        position: float = 1.0,
    ) -> None:
        super().__init__()
        if normalize not in get_args(Normalize):
            raise ValueError(f"normalize must be one of {', '.join(get_args(Normalize))}, got {normalize!r}")
        for edge in size:
            check_count("size", edge)
        check_counts(in_channels=in_channels, stem=stem, channels=channels)
        _check_widths(widths)
        kernel = max(3, 2 * stem - 1)  # every pixel is seen, whatever the stride
        edges = [widths[0], *widths[:-1]]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], kernel, stem, kernel // 2, bias=False),
            nn.GroupNorm(widths[0] // _GROUP, widths[0]),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(
            *(
                ResidualBlock(inner, outer, 1 if index == 0 else 2)
                for index, (inner, outer) in enumerate(zip(edges, widths, strict=True))
            )
        )
        self.project = nn.Conv2d(widths[-1], channels, 1)
        self.norm = nn.LayerNorm(channels) if normalize == "token" else nn.GroupNorm(channels, channels)
        rows, columns = (-(-edge // stem) for edge in size)
        for _ in widths[1:]:
            rows, columns = -(-rows // 2), -(-columns // 2)
        self.grid = (rows, columns)
        self.position = nn.Parameter(position * torch.randn(rows * columns, channels))

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, in_channels, height, width)`` and ``(B,)``, 1 = there, 0 = missing.

        Features are ``(B, rows * columns, channels)``, lengths 0 or their number.
        """
        there = check_there(pixels, lengths)
        blank = zero_padding(pixels.unsqueeze(1), there).squeeze(1)
        cells = self.project(self.stages(self.stem(_channels_last(blank)))).flatten(2)
        if isinstance(self.norm, nn.LayerNorm):
            cells = self.norm(cells.transpose(1, 2)) + self.position
        else:
            cells = self.norm(cells).transpose(1, 2) + self.position
        return EncoderOutput(cells, there * cells.shape[1])


def _channels_last(pixels: Tensor) -> Tensor:
    """Channels beside each other, as the tokens will have them; torch's convolutions are faster so on CPU too.

    Of one channel ``contiguous(memory_format=...)`` would leave the strides as they are, and torch the convolutions
    where channels come first.
    """
    rows = pixels.permute(0, 2, 3, 1)
    return rows.flatten(2).unflatten(2, rows.shape[2:]).permute(0, 3, 1, 2)


def _check_widths(widths: Sequence[int]) -> None:
    if not widths:
        raise ValueError(f"widths must hold one number or more, got {widths!r}")
    for width in widths:
        check_count("widths", width, _GROUP)
        if width % (width // _GROUP):
            raise ValueError(
                f"widths must be divisible by width // {_GROUP}, as multiples of {_GROUP} are, got {width}"
            )
