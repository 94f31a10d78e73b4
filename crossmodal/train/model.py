"""Models from a description that travels inside the checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossmodal.data.sample import Modality, Splits
from crossmodal.encoders.build import build_encoder
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.checkpoint import load_checkpoint
from crossmodal.train.config import TrainConfig

TWO_TOWER = "two_tower"
_SHARED = ("width", "num_heads", "num_queries", "dropout")
_OF_CLASSIFIER = ("fusion", "layers", "quality", "experts")
_OF_TOWERS = ("adversary",)


def describe_model(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """What :func:`build_model` has to know, ready for JSON.

    Raises:
        ValueError: when a modality is asked for that the data do not have.
    """
    data = splits.train
    wanted = config.modalities or tuple(data.modalities)
    if unknown := [name for name in wanted if name not in data.modalities]:
        raise ValueError(f"modalities must be among {', '.join(data.modalities)}, got {', '.join(unknown)}")
    return {
        "kind": TWO_TOWER if config.fusion == TWO_TOWER else "classifier",
        "task": data.task,
        "classes": list(data.classes),
        "modalities": {name: asdict(data.modalities[name]) for name in wanted},
        "auxiliary": {name: count for name, count in data.auxiliary_classes.items() if name in wanted},
        "encoders": {name: dict(config.encoders.get(name, {})) for name in wanted},
        "model": {name: getattr(config, name) for name in (*_SHARED, *_OF_CLASSIFIER, *_OF_TOWERS)},
        "data": splits.description,
    }


def modalities_of(description: dict[str, Any]) -> dict[str, Modality]:
    """By name, in the order of the model."""
    return {
        name: Modality(**{**values, "size": values["size"] and tuple(values["size"])})
        for name, values in description["modalities"].items()
    }


def build_model(description: dict[str, Any], *, seed: int = 0) -> FusionClassifier | TwoTower:
    """A fresh model with weights drawn from ``seed``; the global random state is left as it was.

    Raises:
        ValueError, TypeError: for encoders, forms or options that do not exist.
    """
    options = description["model"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders: dict[str, nn.Module] = {}
        channels: dict[str, int] = {}
        for name, modality in modalities_of(description).items():
            rest = dict(description["encoders"].get(name, {}))
            wanted = rest.pop("channels", options["width"])
            encoders[name], channels[name] = build_encoder(modality, wanted, rest.pop("name", None), rest)
        shared = {name: options[name] for name in _SHARED if name != "dropout"}
        if description["kind"] == TWO_TOWER:
            return TwoTower(
                encoders, channels=channels, **shared, **{name: options[name] for name in _OF_TOWERS}
            )
        return FusionClassifier(
            encoders,
            channels=channels,
            num_classes=len(description["classes"]),
            auxiliary=description["auxiliary"],
            dropout=options["dropout"],
            **shared,
            **{name: options[name] for name in _OF_CLASSIFIER},
        )


def load_model(path: Path) -> tuple[FusionClassifier | TwoTower, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and its description.

    Raises:
        MissingExtraError: when safetensors is not installed.
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no checkpoint of a training run.
    """
    weights, description = load_checkpoint(path)
    if "kind" not in description:
        raise ValueError(f"{path} holds no model of `crossmodal train`")
    model = build_model(description)
    model.load_state_dict(weights)
    return model.eval(), description
