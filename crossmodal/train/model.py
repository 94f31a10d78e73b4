"""Models from a description that travels inside the checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossmodal.data.sample import Dataset, Modality, Question, Splits, Task
from crossmodal.encoders.build import build_encoder
from crossmodal.models.captioner import Captioner
from crossmodal.models.fusion import FUSIONS
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.transcriber import Transcriber
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.checkpoint import load_checkpoint
from crossmodal.train.config import TrainConfig

TWO_TOWER = "two_tower"
_SPELLERS = ("transcriber", "captioner")
Model = FusionClassifier | TwoTower | Transcriber | Captioner
_SHARED = ("width", "num_heads", "num_queries", "dropout")
_OF_CLASSIFIER = ("fusion", "layers", "likeness", "quality", "experts")
_OF_TOWERS = ("adversary",)


def describe_model(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """What :func:`build_model` has to know, ready for JSON.

    Raises:
        ValueError: when a modality is asked for, or has an encoder, that the data do not have.
    """
    data = splits.train
    wanted = config.modalities or tuple(data.modalities)
    if unknown := [name for name in wanted if name not in data.modalities]:
        raise ValueError(f"modalities must be among {', '.join(data.modalities)}, got {', '.join(unknown)}")
    # A preset may have encoders for more than this data set has; a name that nothing has is a mistake.
    if unknown := [name for name in config.encoders if name not in {*data.modalities, "image", "audio", "text"}]:
        raise ValueError(f"encoders must be for {', '.join(data.modalities)}, got {', '.join(unknown)}")
    return {
        "kind": _kind_of(config.fusion, data.task),
        "task": data.task,
        "classes": list(data.classes),
        "modalities": {name: asdict(data.modalities[name]) for name in wanted},
        "auxiliary": {name: list(data.questions[name]) for name in _questions(config, data) if name in wanted},
        "encoders": {name: dict(config.encoders.get(name, {})) for name in wanted},
        "model": {name: getattr(config, name) for name in (*_SHARED, *_OF_CLASSIFIER, *_OF_TOWERS)},
        "data": splits.description,
    }


def _questions(config: TrainConfig, data: Dataset) -> tuple[str, ...]:
    """The modalities whose questions are asked beside the task's.

    Raises:
        ValueError: when the data have no such question.
    """
    asked = tuple(data.questions) if config.auxiliary is None else config.auxiliary
    if unknown := [name for name in asked if name not in data.questions]:
        raise ValueError(f"auxiliary must be among {', '.join(data.questions) or 'nothing'}, got {', '.join(unknown)}")
    return asked


def _kind_of(fusion: str, task: Task) -> str:
    """Of model.

    Raises:
        ValueError: when the form of fusion is unknown, or not for the task.
    """
    if fusion not in (every := (*FUSIONS, TWO_TOWER, *_SPELLERS)):
        raise ValueError(f"fusion must be one of {', '.join(every)}, got {fusion!r}")
    if (task == "transcription") != (fusion in _SPELLERS):
        raise ValueError(
            f"fusion must be {'' if task == 'transcription' else 'none of '}{', '.join(_SPELLERS)}"
            f" for the task {task}, got {fusion!r}"
        )
    return fusion if fusion in (TWO_TOWER, *_SPELLERS) else "classifier"


def modalities_of(description: dict[str, Any]) -> dict[str, Modality]:
    """By name, in the order of the model."""
    return {
        name: Modality(**{**values, "size": values["size"] and tuple(values["size"])})
        for name, values in description["modalities"].items()
    }


def build_model(description: dict[str, Any], *, seed: int = 0) -> Model:
    """A fresh model with weights drawn from ``seed``; the global random state is left as it was.

    Raises:
        ValueError: for encoders, forms or options that do not exist.
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
        shared = {name: options[name] for name in ("width", "num_heads")}
        if description["kind"] == "transcriber":
            return Transcriber(
                encoders, channels=channels, symbols=len(description["classes"]), layers=options["layers"], **shared
            )
        if description["kind"] == "captioner":
            return Captioner(
                encoders,
                channels=channels,
                symbols=len(description["classes"]),
                layers=options["layers"],
                dropout=options["dropout"],
                **shared,
            )
        shared["num_queries"] = options["num_queries"]
        if description["kind"] == TWO_TOWER:
            return TwoTower(encoders, channels=channels, **shared, **{name: options[name] for name in _OF_TOWERS})
        return FusionClassifier(
            encoders,
            channels=channels,
            num_classes=len(description["classes"]),
            auxiliary={name: Question(*values) for name, values in description["auxiliary"].items()},
            dropout=options["dropout"],
            **shared,
            **{name: options[name] for name in _OF_CLASSIFIER},
        )


def begin_with(model: Model, modality: str, path: Path) -> None:
    """Copy a trained model's encoder of a modality, and its projection into the common space, into another model.

    Args:
        model: whose weights are replaced.
        modality: of both models.
        path: the checkpoint of the trained one.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the other model has no such modality, or parts of another shape.
    """
    weights, _ = load_checkpoint(path)
    mine = model.state_dict()
    for prefix in (f"encoders.{modality}.", f"to_common.{modality}."):
        chosen = {name: value for name, value in weights.items() if name.startswith(prefix)}
        wanted = {name: value.shape for name, value in mine.items() if name.startswith(prefix)}
        if not wanted or {name: value.shape for name, value in chosen.items()} != wanted:
            raise ValueError(f"start must name runs with the same {prefix[:-1]}, got {path}")
        model.load_state_dict(chosen, strict=False)


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
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
