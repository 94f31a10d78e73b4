"""What is measured of a trained model beside its accuracy."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossmodal.data.av_find import CELL, GRID, AvFind
from crossmodal.data.av_mnist import AvMnist
from crossmodal.data.collate import Collate
from crossmodal.data.loader import evaluation_loader
from crossmodal.data.sample import Dataset, Splits
from crossmodal.models.alignment import discriminator_accuracy
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.answers import answers_of
from crossmodal.train.evaluation import open_run
from crossmodal.train.examine import mean_mass
from crossmodal.train.learners import make_learner
from crossmodal.train.measures import quality_of
from crossmodal.train.model import modalities_of

_SNRS_DB = (20, 10, 5, 0, -5, -10, -20, -40)
_BATCH = 256


def log_probability_sum(runs: list[Path], splits: Splits) -> dict[str, Any]:
    """The answers of single models multiplied, and each alone, on the test data.

    Args:
        runs: of one model each.
        splits: their data.
    """
    total: Tensor | None = None
    labels = torch.zeros(0)
    for run in runs:
        model, description, config = open_run(run)
        answers = answers_of(
            model,
            make_learner(description, config),
            splits.test,
            Collate(modalities_of(description)),
            batch_size=_BATCH,
        )
        logs = answers.outputs.log_softmax(1)
        total = logs if total is None else total + logs
        labels = answers.labels
    assert total is not None
    return {**quality_of(total, labels, "classification"), "missing": {}}


@torch.no_grad()
def pointing(model: FusionClassifier, description: dict[str, Any], dataset: Dataset) -> dict[str, float]:
    """Whether the attention of the spoken query is where the answer is (the pointing game of Zhang et al., 1608.00507).

    Returns:
        ``strongest``: of the right answers, the share whose strongest link lies in the right cell; ``mass``: of the
        attention on the image, the mean share within the right cell, over all answers.
    """
    collate = Collate(modalities_of(description))
    hits, right, mass, seen = 0, 0, 0.0, 0
    for batch in evaluation_loader(dataset, collate, _BATCH):
        answers = model(batch.inputs, batch.lengths).logits.argmax(1)
        weights = model.attention(batch.inputs, batch.lengths)["image"]  # (B, queries, tokens)
        asking = next(index for index, name in enumerate(model.modalities) if name != "image")
        weights = weights[:, min(asking, weights.shape[1] - 1)]
        cells = cells_of_tokens(model.encoders["image"].grid)  # type: ignore[arg-type]
        inside = cells == batch.labels.unsqueeze(1)
        good = answers == batch.labels
        hits += int((inside.gather(1, weights.argmax(1, keepdim=True)).squeeze(1) & good).sum())
        right += int(good.sum())
        mass += float(((weights * inside).sum(1) / weights.sum(1).clamp(min=1e-12)).sum())
        seen += len(answers)
    return {"strongest": hits / max(1, right), "mass": mass / seen}


def cells_of_tokens(grid: tuple[int, int]) -> Tensor:
    """``(tokens,)`` int64: the cell of the canvas in which the middle of each token lies."""
    edge = GRID * CELL
    rows, columns = (((torch.arange(count) + 0.5) * edge / count / CELL).long() for count in grid)
    return (rows.unsqueeze(1) * GRID + columns).flatten()


def mass_by_snr(model: FusionClassifier, description: dict[str, Any], dataset: AvMnist) -> dict[str, float]:
    """By signal-to-noise ratio in dB, the mean share of attention that the sound of the hard test receives."""
    collate = Collate(modalities_of(description))
    shares = {}
    for snr_db in _SNRS_DB:
        shares[str(snr_db)] = mean_mass(model, dataset.at_snr(snr_db), collate, 512)["audio"]
    return shares


@torch.no_grad()
def alignment(model: TwoTower, description: dict[str, Any], splits: Splits) -> dict[str, float]:
    """How often a fresh discriminator tells the modalities' embeddings apart: trained on validation, judged on test."""
    collate = Collate(modalities_of(description))
    pairs = []
    for dataset in (splits.validation, splits.test):
        vectors: dict[str, list[Tensor]] = {name: [] for name in model.modalities}
        for index, batch in enumerate(evaluation_loader(dataset, collate, _BATCH)):
            if index == 8:  # 2,048 pairs tell it to a point
                break
            for name, values in model(batch.inputs, batch.lengths).vectors.items():
                vectors[name].append(values)
        first, second = (torch.cat(vectors[name]) for name in model.modalities)
        pairs.append((first, second))
    return {"discriminator": discriminator_accuracy(pairs[0], pairs[1])}


def extras(run: Path, splits: Splits, form: str) -> dict[str, Any]:
    """What is measured of a run's model beside its accuracy; empty for most."""
    model, description, _ = open_run(run)
    if isinstance(model, TwoTower):
        return alignment(model, description, splits)
    if not isinstance(model, FusionClassifier):
        return {}
    if isinstance(splits.test, AvFind) and model.fusion.weighs and form == "cross":
        return pointing(model, description, splits.test)
    if model.quality is not None and isinstance(splits.test, AvMnist):
        return {"mass_by_snr": mass_by_snr(model, description, splits.test)}
    return {}
