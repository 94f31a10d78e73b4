"""Models from a description that travels inside the checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal.data.sample import Dataset, Modality, Question, Splits, Task
from crossmodal.encoders.build import build_encoder, settled_options
from crossmodal.models.captioner import Captioner
from crossmodal.models.fusion import FUSIONS
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.transcriber import Transcriber
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.checkpoint import load_checkpoint
from crossmodal.train.config import TrainConfig
from crossmodal.train.reading import difference, reading_of
from crossmodal.train.state import shapes_of

TWO_TOWER = "two_tower"
_SPELLERS = ("transcriber", "captioner")
Model = FusionClassifier | TwoTower | Transcriber | Captioner
_SHARED = ("width", "num_heads", "num_queries", "dropout")
_OF_CLASSIFIER = ("fusion", "layers", "likeness", "quality", "experts")
_OF_TOWERS = ("adversary", "codes", "code_groups")


def describe_model(config: TrainConfig, splits: Splits) -> dict[str, Any]:
    """What :func:`build_model` has to know, ready for JSON.

    How the inputs of pretrained encoders are normalised is looked up here, and not when a trained model is opened.

    Raises:
        MissingExtraError, OSError: when that cannot be looked up.
        ValueError: when a modality is asked for, or has an encoder or positions, that the data do not have.
    """
    data = splits.train
    wanted = config.modalities or tuple(data.modalities)
    if unknown := [name for name in wanted if name not in data.modalities]:
        raise ValueError(f"modalities must be among {', '.join(data.modalities)}, got {', '.join(unknown)}")
    # A preset may have them for more than this data set has; a name that nothing has is a mistake.
    for setting in ("encoders", "positions"):
        if unknown := [n for n in getattr(config, setting) if n not in {*data.modalities, "image", "audio", "text"}]:
            raise ValueError(f"{setting} must be for {', '.join(data.modalities)}, got {', '.join(map(str, unknown))}")
    if config.experts == "product" and data.task != "classification":
        raise ValueError(
            f"experts must be none or auxiliary for the task {data.task}: a product is one of probabilities of classes"
        )
    return {
        "kind": _kind_of(config.fusion, data.task),
        "task": data.task,
        "classes": list(data.classes),
        "modalities": {name: asdict(data.modalities[name]) for name in wanted},
        "auxiliary": {name: list(data.questions[name]) for name in _questions(config, data) if name in wanted},
        "encoders": {name: settled_options(data.modalities[name], config.encoders.get(name, {})) for name in wanted},
        "positions": {name: config.positions[name] for name in wanted if name in config.positions},
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
    if fusion == TWO_TOWER and task != "classification":
        raise ValueError(f"fusion must not be {TWO_TOWER} for the task {task}: classes tell what belongs together")
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
        shared: dict[str, Any] = {name: options[name] for name in ("width", "num_heads")}
        questions = {name: Question(*values) for name, values in description["auxiliary"].items()}
        if description["kind"] == "transcriber":
            return Transcriber(
                encoders,
                channels=channels,
                symbols=len(description["classes"]),
                layers=options["layers"],
                positions=description["positions"],
                auxiliary=questions,
                **shared,
            )
        if description["kind"] == "captioner":
            return Captioner(
                encoders,
                channels=channels,
                symbols=len(description["classes"]),
                layers=options["layers"],
                dropout=options["dropout"],
                positions=description["positions"],
                auxiliary=questions,
                **shared,
            )
        shared["num_queries"] = options["num_queries"]
        if description["kind"] == TWO_TOWER:
            # Checkpoints from before there were codes do not name them.
            of_towers = {name: options[name] for name in _OF_TOWERS if name in options}
            return TwoTower(encoders, channels=channels, **shared, **of_towers)
        return FusionClassifier(
            encoders,
            channels=channels,
            num_classes=len(description["classes"]),
            auxiliary=questions,
            dropout=options["dropout"],
            **shared,
            **{name: options[name] for name in _OF_CLASSIFIER},
        )


def begin_with(model: Model, description: dict[str, Any], runs: Mapping[str, Path]) -> list[str]:
    """Copy what trained models know, of a modality each, into another model.

    That is the encoder and the projection into the common space; and the whole answer, where the trained one answers
    the same question from this modality alone, and:

    - the model has an expert for the modality, and the trained one is of the form ``queries``. A product of experts
      that all begin so begins as the sum of their log-probabilities: the last layer of the fused head is set to zero,
      and learns what they miss;
    - both are of one kind that spells, of as many layers, and no other run does: it begins as one that spells already,
      and learns to attend to more. CTC from a fresh head says next to nothing for a while, in which an encoder
      forgets what it knew. Positions may differ; what attention does with them is soon learnt.

    Args:
        model: whose weights are replaced.
        description: what it was built from.
        runs: by modality, the checkpoint of the trained model.

    Returns:
        For people: by run, what was taken from it.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a trained model has no such modality, reads it with other words, at another rate, in other
            frames or normalised otherwise, or has parts of another shape, and for a checkpoint of something else.
    """
    checkpoints = {modality: _checkpoint(path) for modality, path in runs.items()}
    answers = [name for name, (_, trained) in checkpoints.items() if _answers_alone(trained, name, description)]
    whole = set()
    for modality, (weights, trained) in checkpoints.items():
        if modality in trained["modalities"]:
            theirs, mine = (reading_of(one, modality) for one in (trained, description))
            if said := difference(theirs, mine):
                raise ValueError(
                    f"start must name runs that read {modality} as this one does: {runs[modality].parent} has {said}"
                )
        for prefix in (f"encoders.{modality}.", f"to_common.{modality}."):
            if not _copied(model, prefix, _under(prefix, weights)):
                raise ValueError(f"start must name runs with the same {prefix[:-1]}, got {runs[modality]}")
    for modality in answers:
        weights, trained = checkpoints[modality]
        if description["kind"] in _SPELLERS:
            taken = len(answers) == 1 and _copied_speller(model, weights)
        else:
            taken = _has_expert_s_form(trained) and _copied(model, f"experts.{modality}.", _as_expert(weights))
        if taken:
            whole.add(modality)
    if isinstance(model, FusionClassifier) and model.trust is not None and whole == set(model.modalities):
        last = model.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return [f"{'the whole' if name in whole else 'the encoder'} of {path.parent}" for name, path in runs.items()]


def _answers_alone(trained: dict[str, Any], modality: str, wanted: dict[str, Any]) -> bool:
    """Whether a trained model answers the wanted question from one modality, and weights mean the same in both."""
    return (
        all(trained.get(name) == wanted[name] for name in ("kind", "task", "classes"))
        and list(trained["modalities"]) == [modality]
        and trained["model"]["num_heads"] == wanted["model"]["num_heads"]
    )


def _has_expert_s_form(trained: dict[str, Any]) -> bool:
    """Whether it answers in the way of an :class:`Expert`."""
    return bool(trained["model"]["fusion"] == "queries" and trained["model"]["experts"] != "product")


def _as_expert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The answer of a model of one modality under the names that an :class:`Expert` has for it."""
    # There is no dropout in the head of an expert, and so one layer less.
    names = {name: name.replace("fusion.", "pool.").replace("head.4.", "head.3.") for name in weights}
    return {new: weights[old] for old, new in names.items() if new.startswith(("pool.", "head."))}


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _copied(model: Model, prefix: str, weights: dict[str, Tensor]) -> bool:
    """Put weights into the part of a model under a prefix; False, and nothing done, where they are not its own."""
    mine = _under(prefix, model.state_dict())
    if not mine or shapes_of(mine) != shapes_of(weights):
        return False
    model.load_state_dict({prefix + name: value for name, value in weights.items()}, strict=False)
    return True


def _copied_speller(model: Model, weights: dict[str, Tensor]) -> bool:
    """Put one that spells from a modality into another; False, and nothing done, where they do not spell alike."""
    of_modalities = ("encoders.", "to_common.", "kinds.", "auxiliary.")
    mine, answer = (
        {name: value for name, value in one.items() if not name.startswith(of_modalities)}
        for one in (model.state_dict(), weights)
    )
    if shapes_of(mine) != shapes_of(answer):
        return False
    model.load_state_dict({n: v for n, v in weights.items() if not n.startswith("auxiliary.")}, strict=False)
    return True


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and description of a model, whichever version saved it.

    Raises:
        MissingExtraError, FileNotFoundError: as :func:`load_checkpoint`.
        ValueError: when it is none of a training run.
    """
    weights, description = load_checkpoint(path)
    if "kind" not in description:
        raise ValueError(f"{path} holds no model of `crossmodal train`")
    description.setdefault("positions", {})  # what is from before there were any does not name them
    for options in description["encoders"].values():
        if options.get("name") == "vit":
            options.setdefault("patch", 7)  # what it was before it went by the size of the images
    return weights, description


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and its description.

    Raises:
        MissingExtraError: when safetensors is not installed.
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no checkpoint of a training run, or one of another version.
    """
    weights, description = _checkpoint(path)
    model = build_model(description)
    if shapes_of(model.state_dict()) != shapes_of(weights):
        raise ValueError(f"{path} holds weights of another version of crossmodal; train again")
    model.load_state_dict(weights)
    return model.eval(), description
