"""How good a model is on data that nothing was chosen by: with everything, and with each modality missing."""

import functools
from typing import Any

import torch

from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.loader import evaluation_loader
from crossmodal.data.sample import Dataset
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.modality_dropout import modality_sets
from crossmodal.models.shares import shares_of
from crossmodal.models.transcriber import Transcriber
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.answers import answers_of
from crossmodal.train.config import TrainConfig
from crossmodal.train.learner import ClassifierLearner
from crossmodal.train.learners import make_learner
from crossmodal.train.measures import confusion_matrix, report
from crossmodal.train.model import Model, modalities_of


def examine(model: Model, description: dict[str, Any], dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """What ``metrics.json`` says about a data set.

    Args:
        model, description: from :func:`crossmodal.train.model.load_model`.
        dataset: to examine on.
        config: batch size, workers and threads are used.

    Returns:
        ``accuracy``, ``loss`` and the other measures of the task; ``missing``, by modality, the accuracy without it;
        ``mass``, by modality, the mean share of attention, for forms with weights; of a classification ``classes``, by
        class precision, recall and the like, and ``confusion``, rows the true classes.

    Raises:
        MissingExtraError: when scikit-learn is not installed, for a classification.
    """
    torch.set_num_threads(config.threads)
    learner = make_learner(description, config)
    collate = Collate(modalities_of(description))
    size, workers = 2 * config.batch_size, config.workers
    ask = functools.partial(answers_of, model, learner, dataset, collate, batch_size=size, workers=workers)
    if not isinstance(model, FusionClassifier):
        answers = ask()
        missing: dict[str, float] = {}
        spared = (model.speech,) if isinstance(model, Transcriber) else ()
        for name in () if isinstance(model, TwoTower) or len(model.modalities) == 1 else model.modalities:
            if name not in spared:
                less = ask(change=functools.partial(Batch.without, modality=name))
                missing[name] = learner.measure(less)["accuracy"]
        return {"samples": len(answers.labels), **learner.measure(answers), "missing": missing}
    assert isinstance(learner, ClassifierLearner)
    count = len(model.modalities)
    sets = modality_sets(count)[: count + 1 if count > 1 else 1]  # all of them, then each one left out
    model.eval()
    answers, *less_each = learner.answer_sets(model, evaluation_loader(dataset, collate, size, workers=workers), sets)
    found: dict[str, Any] = {"samples": len(answers.labels), **learner.measure(answers)}
    found["missing"] = {
        name: learner.measure(less)["accuracy"] for name, less in zip(model.modalities, less_each, strict=False)
    }
    found["mass"] = mean_mass(model, dataset, collate, size)
    if description["task"] == "classification":
        found["classes"] = report(answers.outputs, answers.labels, tuple(description["classes"]))
        found["confusion"] = confusion_matrix(answers.outputs, answers.labels).tolist()
    return found


@torch.no_grad()
def mean_mass(model: FusionClassifier, dataset: Dataset, collate: Collate, size: int) -> dict[str, float]:
    """By modality, the share of attention over the first ``size`` samples; empty for forms without weights."""
    samples = [dataset[index] for index in range(min(size, len(dataset)))]
    batch = collate(samples)
    mass = model(batch.inputs, batch.lengths, return_mass=True).mass
    if mass is None:
        return {}
    return dict(zip(model.modalities, shares_of(mass.flatten(0, 1)[None]).squeeze(0).tolist(), strict=True))


def summary(found: dict[str, Any]) -> str:
    """A few lines for people."""
    split = found.get("split", "test")
    lines = [f"{split}, {found['samples']:,} samples: accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}"]
    lines += [f"  without {name}: accuracy {value:.4f}" for name, value in found["missing"].items()]
    if found.get("mass"):
        lines.append("  mass: " + ", ".join(f"{name} {value:.2f}" for name, value in found["mass"].items()))
    if found.get("classes"):
        width = max(len(name) for name in found["classes"])
        lines.append(f"  {'':{width}}  precision  recall  samples")
        for name, row in found["classes"].items():
            lines.append(f"  {name:{width}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['support']:7.0f}")
    return "\n".join(lines)
