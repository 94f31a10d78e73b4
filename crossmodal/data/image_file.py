"""Reading images: any format and colour mode that Pillow knows, to a float32 tensor of one size."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossmodal._extras import require
from crossmodal.data.audio_file import BrokenFileError, check_there

LARGEST_PIXELS = 100_000_000  # a few hundred megabytes once decoded; beyond it is a bomb or a mistake


def read_image(
    path: Path, size: tuple[int, int, int], *, largest_pixels: int = LARGEST_PIXELS, content: bytes | None = None
) -> Tensor:
    """An image in [0, 1], scaled to ``size`` whatever its shape was.

    Palettes, CMYK, 16 bits and transparency become grey or red, green, blue; transparent pixels are white. The camera's
    orientation is obeyed.

    Args:
        path: a file.
        size: channels (1 or 3), height, width.
        largest_pixels: an image of more is refused before it is decoded.
        content: of the file, where it is not on disk; ``path`` is then its name.

    Returns:
        ``size`` float32.

    Raises:
        MissingExtraError: when Pillow is not installed.
        FileNotFoundError: when there is no such file.
        BrokenFileError: when the file is empty, truncated, no image, too large, or holds NaN or Inf.
    """
    pillow = require("PIL.Image", distribution="pillow", extra="train")
    operations = require("PIL.ImageOps", distribution="pillow", extra="train")
    if content is None:
        check_there(path)
    channels, height, width = size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # our own bound speaks first
            with pillow.open(path if content is None else io.BytesIO(content)) as file:
                if file.width * file.height > largest_pixels:
                    raise BrokenFileError(
                        f"{path}: {file.width} x {file.height} pixels, at most {largest_pixels:,} are read"
                    )
                # JPEG can be decoded small at once; others ignore it.
                file.draft(None, (2 * width, 2 * height))
                image = operations.exif_transpose(file)
                image = _flat(image, channels, pillow).resize((width, height), pillow.Resampling.BILINEAR)
    except BrokenFileError:
        raise
    except pillow.UnidentifiedImageError:
        raise BrokenFileError(f"{path}: no image of a known format") from None
    # Pillow's decoders raise whatever they run into: OSError, SyntaxError, struct.error, their own bomb error.
    except Exception as error:
        raise BrokenFileError(f"{path}: {error}") from error
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _flat(image: Any, channels: int, pillow: Any) -> Any:
    """Grey or colour, without transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or Inf")
        # Integers of 16 bits or more; Pillow's own conversion would cut them off at 255.
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        image = pillow.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, "white")
        image = pillow.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")
