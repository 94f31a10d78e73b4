"""Random changes of an image that leave its meaning alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class ImageAugment:
    """Crop, flip, erase.

    Attributes:
        crop: the smallest share of the area that a random crop keeps, scaled up again; 1 crops nothing.
        flip: mirror left and right half of the time. Not for digits or text.
        erase: how often a random rectangle becomes the image's mean (Zhong et al., arXiv 1708.04896), in [0, 1].
        erased: the largest share of the area that it covers.
    """

    crop: float = 1.0
    flip: bool = False
    erase: float = 0.0
    erased: float = 0.2

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """``(channels, height, width)`` to the same."""
        if self.crop < 1:
            image = random_crop(image, rng, self.crop)
        if self.flip and rng.random() < 0.5:
            image = image.flip(2)
        if self.erase and rng.random() < self.erase:
            image = random_erase(image, rng, self.erased)
        return image


def random_crop(image: Tensor, rng: np.random.Generator, smallest: float) -> Tensor:
    """A part of the image of the same shape, ``smallest`` to 1 of its area, scaled to its size."""
    _, height, width = image.shape
    edge = float(np.sqrt(rng.uniform(smallest, 1)))
    rows, columns = max(1, round(edge * height)), max(1, round(edge * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = image[None, :, top : top + rows, left : left + columns]
    return interpolate(part, (height, width), mode="bilinear", align_corners=False)[0]


def random_erase(image: Tensor, rng: np.random.Generator, largest: float) -> Tensor:
    """A rectangle of up to ``largest`` of the area, 1:3 to 3:1, is replaced by the mean of its channel."""
    _, height, width = image.shape
    area, ratio = rng.uniform(0.02, max(0.02, largest)) * height * width, np.exp(rng.uniform(-np.log(3), np.log(3)))
    rows = int(np.clip(round(np.sqrt(area * ratio)), 1, height))
    columns = int(np.clip(round(np.sqrt(area / ratio)), 1, width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    hidden = torch.zeros(1, height, width, dtype=torch.bool)
    hidden[:, top : top + rows, left : left + columns] = True
    return torch.where(hidden, image.mean((1, 2), keepdim=True), image)
