"""What a pretrained network expects of its inputs: what a feature extractor did to them in its training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal._extras import require
from crossmodal.encoders.padding import zero_padding

_FILES = ("preprocessor_config.json", "processor_config.json")
_PARTS = ("image_processor", "feature_extractor")  # of a processor of several modalities
_TINY = 1e-7  # added to the variance of a sound, as Wav2Vec2's extractor does


class ChannelScale(nn.Module):
    """``(values - mean) / deviation``, by channel.

    Args:
        mean, deviation: of each channel, of values in [0, 1].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        # They come from the model's files whenever it is built, not from checkpoints.
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, lengths: Tensor) -> Tensor:
        """``(B, channels, height, width)`` and ``(B,)``, which says nothing here."""
        if pixels.shape[1] != len(self.mean):
            raise ValueError(f"images must have {len(self.mean)} channels, got {pixels.shape[1]}")
        return (pixels - self.mean) / self.deviation


class UnitVariance(nn.Module):
    """Each sound to a mean of 0 and a variance of 1."""

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """``(B, L)``, of which the first ``lengths`` ``(B,)`` are real, and the only ones that count."""
        count = lengths.clamp(min=1).unsqueeze(1)
        mean = zero_padding(values, lengths).sum(1, keepdim=True) / count
        centred = zero_padding(values - mean, lengths)
        return centred / (centred.square().sum(1, keepdim=True) / count + _TINY).sqrt()


def preparation_of(model: str, kind: str) -> nn.Module | None:
    """How inputs are normalised for a model of ``transformers``, from the settings that are saved with it.

    Args:
        model: a name or a folder.
        kind: ``image``, ``audio`` or ``text``.

    Returns:
        A module of values and lengths; None where nothing is said, or nothing is to be done.

    Raises:
        MissingExtraError: when transformers is not installed.
    """
    settings = _saved(model) if kind != "text" else {}
    if not settings.get("do_normalize", False):
        return None
    if kind == "audio":
        return UnitVariance()
    return _scale(settings.get("image_mean"), settings.get("image_std"))


def preparation_of_timm(settings: Mapping[str, Any]) -> nn.Module | None:
    """The same for the ``pretrained_cfg`` of a model of ``timm``."""
    return _scale(settings.get("mean"), settings.get("std"))


def _scale(mean: Sequence[float] | None, deviation: Sequence[float] | None) -> nn.Module | None:
    return ChannelScale(mean, deviation) if mean and deviation else None


def _saved(model: str) -> dict[str, Any]:
    library = require("transformers.utils", distribution="transformers", extra="backbones")
    for name in _FILES:
        path = library.cached_file(
            model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if path is not None:
            found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            return next((found[part] for part in _PARTS if part in found), found)
    return {}
