"""An image cut into patches, each of which becomes a token."""

from torch import Tensor, nn

from crossmodal.blocks.operators import Implementation


class PatchEmbedding(nn.Conv2d):
    """:class:`torch.nn.Conv2d`, weights and all, whose stride is its kernel: a linear layer over patches.

    Args:
        in_channels, out_channels: of images and of tokens.
        patch: edge of a patch, in pixels; images are multiples of it.

    As a linear layer, it and its gradient take a third of the time on CPU where images are grey, and tokens have their
    channels beside each other: behind a convolution, every norm of the stream would make a copy first. The
    implementation ``"reference"`` is Conv2d itself.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__(in_channels, out_channels, patch, patch)
        self.implementation: Implementation = "fused"

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, in_channels, height, width)`` to ``(B, patches, out_channels)``, row by row.

        Raises ValueError for images that patches do not fill.
        """
        if any(edge % size for edge, size in zip(pixels.shape[2:], self.kernel_size, strict=True)):
            raise ValueError(f"pixels must be multiples of {self.kernel_size[0]}, got {tuple(pixels.shape[2:])}")
        if self.implementation == "reference":
            return super().forward(pixels).flatten(2).transpose(1, 2)
        patch, _ = self.kernel_size
        patches = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, patch, columns, patch)
        flat = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(flat, self.weight.flatten(1), self.bias)
