"""Image to tokens: VGG16 (Simonyan and Zisserman, arXiv 1409.1556), without its classifier."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crossmodal.encoders.lengths import check_there
from crossmodal.encoders.output import EncoderOutput
from crossmodal.encoders.padding import zero_padding

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions between poolings
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, red, green, blue in [0, 1], as torchvision's weights expect
_DEVIATION = (0.229, 0.224, 0.225)
_SMALLEST = 2 ** len(_STAGES)  # every stage halves the image


class VGG16Encoder(nn.Module):
    """Image to one token of 512 channels per ``32 x 32`` pixels, row by row.

    The keys of its weights are those of ``torchvision.models.vgg16``, so that its state dict loads:
    :meth:`load_torchvision`. Nothing is downloaded.

    Args:
        size: height and width of the images, where all are alike.
        frozen: the weights are kept as they are; gradients pass to the input, none are kept for the weights.

    Attributes:
        channels: 512.
        grid: rows and columns of the tokens; None without a ``size``.
    """

    channels = 512
    mean: Tensor
    deviation: Tensor

    def __init__(self, size: tuple[int, int] | None = None, *, frozen: bool = False) -> None:
        super().__init__()
        self.grid = None if size is None else (size[0] // _SMALLEST, size[1] // _SMALLEST)
        layers: list[nn.Module] = []
        inner = 3
        for outer, convolutions in _STAGES:
            for _ in range(convolutions):
                layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True)]
                inner = outer
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        for module in self.features:
            if isinstance(module, nn.Conv2d):  # He's rule, as torchvision starts
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.features.requires_grad_(not frozen)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def load_torchvision(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of ``torchvision.models.vgg16(...).state_dict()``; those of its classifier are left out.

        Raises:
            RuntimeError: when a weight is missing or has another shape, as ``load_state_dict``.
        """
        self.load_state_dict({name: values for name, values in state.items() if not name.startswith("classifier.")})

    def forward(self, pixels: Tensor, lengths: Tensor) -> EncoderOutput:
        """``(B, 3, height, width)`` in [0, 1], or one grey channel, and ``(B,)``, 1 = there, 0 = missing.

        Height and width are at least 32. Features are ``(B, height / 32 * width / 32, 512)``.

        Raises:
            ValueError: when they are less, or there are other channels.
        """
        check_image(pixels.shape[1:])
        there = check_there(pixels, lengths)
        blank = zero_padding(pixels.unsqueeze(1), there).squeeze(1)
        normal = (blank.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        cells = self.features(normal).flatten(2).transpose(1, 2)
        return EncoderOutput(cells, there * cells.shape[1])


def check_image(shape: Sequence[int]) -> None:
    """Raises ValueError unless an image of this shape, channels first, can be read."""
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < _SMALLEST:
        raise ValueError(
            f"images for vgg16 must be (1 or 3 channels, height, width), both edges at least {_SMALLEST}, "
            f"got {tuple(shape)}"
        )
