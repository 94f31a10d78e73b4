"""What a pretrained network expects of its inputs: what a feature extractor did to them in its training."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossmodal._extras import require
from crossmodal.encoders.padding import zero_padding

# How: by channel, ``{"mean": [...], "deviation": [...]}``; each sound by itself; True, as the model's files say; False,
# not at all. All but True mean the same wherever they are read, and can be written as JSON.
Normalization = bool | Literal["unit_variance"] | Mapping[str, Sequence[float]]

_FILES = ("preprocessor_config.json", "processor_config.json")
# Of a processor of several modalities, the part for each.
_PARTS = {"image": "image_processor", "audio": "feature_extractor"}
_PIXEL = 255  # the brightest, of which extractors make 1
_TINY = 1e-7  # added to the variance of a sound, as Wav2Vec2's extractor does


class ChannelScale(nn.Module):
    """``(values - mean) / deviation``, by channel.

    Args:
        mean, deviation: of each channel, or one for all, of values in [0, 1].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        # They are settings: what is learnt has the same names with them and without.
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, lengths: Tensor) -> Tensor:
        """``(B, channels, height, width)`` and ``(B,)``, which says nothing here."""
        if len(self.mean) not in (1, pixels.shape[1]):
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


def preparation_of(normalize: Normalization, kind: str) -> nn.Module | None:
    """The module that does it; None for nothing.

    Args:
        normalize: how, but not True.
        kind: ``image``, ``audio`` or ``text``.

    Returns:
        A module of values and lengths.

    Raises:
        ValueError: for what is no way to normalise that kind.
    """
    if normalize is False:
        return None
    if kind == "audio" and normalize == "unit_variance":
        return UnitVariance()
    if kind == "image" and isinstance(normalize, Mapping) and normalize.keys() == {"mean", "deviation"}:
        mean, deviation = normalize["mean"], normalize["deviation"]
        if len(mean) != len(deviation) or not all(deviation):
            raise ValueError(f"normalize must have a deviation other than 0 for each mean, got {normalize!r}")
        return ChannelScale(mean, deviation)
    wanted = {"image": ", or mean and deviation,", "audio": " or 'unit_variance'"}.get(kind, "")
    raise ValueError(f"normalize must be True or False{wanted} for {kind}, got {normalize!r}")


def saved_normalization(model: str, kind: str) -> Normalization:
    """How inputs are normalised for a model of ``transformers``, from the settings that are saved with it.

    Args:
        model: a name or a folder.
        kind: ``image``, ``audio`` or ``text``.

    Returns:
        False where nothing is said, or nothing is to be done; never True.

    Raises:
        MissingExtraError: when transformers is not installed.
        OSError: when nobody can tell what is saved with it: its name is unknown, or the hub cannot be reached.
    """
    settings = _saved(model, _PARTS[kind]) if kind in _PARTS else {}
    if kind == "audio":
        return "unit_variance" if settings.get("do_normalize", False) else False
    return _of_images(settings)


def timm_normalization(settings: Mapping[str, Any]) -> Normalization:
    """The same for the ``pretrained_cfg`` of a model of ``timm``."""
    mean, deviation = settings.get("mean"), settings.get("std")
    return {"mean": list(mean), "deviation": list(deviation)} if mean and deviation else False


def _of_images(settings: Mapping[str, Any]) -> Normalization:
    """From what an image processor is told, which reads bytes: ``rescale_factor`` times these, and so on."""
    normalizes = settings.get("do_normalize", False) and bool(settings.get("image_mean") and settings.get("image_std"))
    mean, deviation = (
        (_as_list(settings["image_mean"]), _as_list(settings["image_std"])) if normalizes else ([0.0], [1.0])
    )
    if normalizes and settings.get("include_top", False):  # EfficientNet's divides twice
        deviation = [value * value for value in deviation]
    # Without do_rescale, it was told that images are in [0, 1] already.
    if settings.get("do_rescale", True):
        brightest = _PIXEL * settings.get("rescale_factor", 1 / _PIXEL)
        lowered = 1 if settings.get("rescale_offset", False) else 0
        if lowered or not math.isclose(brightest, 1):
            mean = [(value + lowered) / brightest for value in mean]
            deviation = [value / brightest for value in deviation]
    if mean == [0.0] and deviation == [1.0]:
        return False
    return {"mean": mean, "deviation": deviation}


def _as_list(values: float | Sequence[float]) -> list[float]:
    return [values] if isinstance(values, int | float) else list(values)


def _saved(model: str, part: str) -> dict[str, Any]:
    """What is saved with the model for one of its modalities; nothing where there are no settings for it."""
    for name in _FILES:
        path = _file_of(model, name)
        if path is None:
            continue
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if part in found:
            settings: dict[str, Any] = found[part]
            return settings
        if not any(other in found for other in _PARTS.values()):
            return found
    return {}


def _file_of(model: str, name: str) -> Path | None:
    """None where the model has no such file, which is another thing than a hub that does not answer."""
    library = require("transformers.utils", distribution="transformers", extra="backbones")
    errors = require("huggingface_hub.errors", distribution="huggingface_hub", extra="backbones")
    try:
        return Path(library.cached_file(model, name))
    except OSError as error:
        if isinstance(error.__cause__, errors.LocalEntryNotFoundError):
            raise OSError(
                f"whether inputs of {model} are to be normalised cannot be looked up in its {name}: the hub does not"
                " answer, and the file is not in its cache; with normalize false, they are left as they are"
            ) from error
        if error.__cause__ is None or isinstance(error.__cause__, errors.EntryNotFoundError):
            return None
        raise
