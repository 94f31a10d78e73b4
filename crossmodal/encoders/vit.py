"""Image to tokens: one per patch, and a transformer over them (Dosovitskiy et al., arXiv 2010.11929)."""

import torch
from torch import Tensor, nn

from crossmodal._validate import check_count, check_counts
from crossmodal.blocks.common_block import CommonBlock
from crossmodal.encoders.lengths import check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding
from crossmodal.encoders.patches import PatchEmbedding

_PATCHES = (16, 14, 8, 7, 4, 2)
_FEWEST = 4  # patches along an edge


class ViTEncoder(nn.Module):
    """Image to one token per patch, row by row; pre-norm transformer layers on :func:`crossmodal.fuse`.

    Args:
        size: height and width of the image, in pixels; multiples of ``patch``.
        in_channels: 1 for grey, 3 for colour.
        patch: edge of a patch, in pixels; None: of 16, 14, 8, 7, 4 and 2 the largest that fills the image with four by
            four patches or more, else the smallest that fills it.
        channels: of the features; a multiple of ``num_heads``.
        layers, num_heads, dropout: of the transformer.

    Attributes:
        grid: rows and columns of the tokens.

    Raises:
        ValueError: when patches do not fill the image, or no usual one does; when ``channels`` is not a multiple of
            ``num_heads``, or a number is too small.
    """

    def __init__(
        self,
        size: tuple[int, int],
        in_channels: int = 1,
        *,
        patch: int | None = None,
        channels: int = 48,
        layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for edge in size:
            check_count("size", edge)
        patch = usual_patch(size) if patch is None else patch
        check_counts(in_channels=in_channels, patch=patch, channels=channels)
        check_count("layers", layers, 0)
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"size must be a multiple of patch, got {size} and {patch}")
        self.size = (in_channels, *size)
        self.grid = (size[0] // patch, size[1] // patch)
        self.embed = PatchEmbedding(in_channels, channels, patch)
        self.position = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], channels))
        self.layers = nn.ModuleList(CommonBlock(channels, num_heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, in_channels, height, width)`` and ``(B,)``, 1 = there, 0 = missing.

        Features are ``(B, patches, channels)``, lengths 0 or the number of patches. Raises ValueError for images of
        another size than the encoder is for.
        """
        if tuple(pixels.shape[1:]) != self.size:
            raise ValueError(f"pixels must be (B, {', '.join(map(str, self.size))}), got {tuple(pixels.shape)}")
        there = check_there(pixels, lengths)
        blank = zero_padding(pixels.unsqueeze(1), there).squeeze(1)
        tokens = self.embed(blank) + self.position
        lengths = there * tokens.shape[1]
        for layer in self.layers:
            tokens, _ = layer(tokens, [(tokens, lengths)])
        return EncoderOutput(self.norm(tokens), lengths)


def usual_patch(size: tuple[int, int]) -> int:
    """The edge of a patch, in pixels, where none is given; see :class:`ViTEncoder`.

    Args:
        size: height and width of the image, in pixels.

    Raises:
        ValueError: when none fills the image.
    """
    fitting = [patch for patch in _PATCHES if all(edge % patch == 0 for edge in size)]
    if not fitting:
        raise ValueError(
            f"patch must be given for images of {size}: none of {', '.join(map(str, _PATCHES))} fills them"
        )
    return next((patch for patch in fitting if min(size) >= _FEWEST * patch), fitting[-1])
