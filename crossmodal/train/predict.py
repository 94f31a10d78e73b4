"""What a trained model says about files: answers, and what they rest on."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.sample import Sample
from crossmodal.models.captioner import Captioner
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.models.shares import shares_of
from crossmodal.models.transcriber import Transcriber
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.model import Model, modalities_of


@torch.no_grad()
def predict(
    model: Model, description: dict[str, Any], samples: Iterable[Sample], *, batch_size: int = 32, links: int = 3
) -> Iterator[dict[str, Any]]:
    """One row per sample, ready for JSON.

    ``name``; of a classification ``answer`` and ``scores`` by class, of a multi-label task the same with all answers
    above one half, of a regression ``values``; ``mass`` by modality, its share of all attention, where the fusion
    weighs modalities; ``links``, the tokens that received most of it, each with its modality, number, share and place.
    A model that spells says ``text``; two towers give ``embeddings`` by modality.

    Args:
        model, description: from :func:`crossmodal.train.model.load_model`.
        samples: see :class:`crossmodal.train.inputs.Inputs`.
        batch_size: samples at a time.
        links: how many.
    """
    collate = Collate(modalities_of(description))
    rest = iter(samples)
    while chosen := list(itertools.islice(rest, batch_size)):
        batch = collate(chosen)
        rows: list[dict[str, Any]] = [{"name": sample.name} for sample in chosen]
        if isinstance(model, FusionClassifier):
            _classify(model, description, batch, rows, links)
        elif isinstance(model, TwoTower):
            vectors, present = model(batch.inputs, batch.lengths)
            for index, row in enumerate(rows):
                row["embeddings"] = {n: v[index].tolist() for n, v in vectors.items() if present[n][index]}
        else:
            assert isinstance(model, Transcriber | Captioner)
            symbols = description["classes"]
            for row, said in zip(rows, model.transcribe(batch.inputs, batch.lengths), strict=True):
                row["text"] = "".join(symbols[symbol - 1] for symbol in said)
        yield from rows


def _classify(
    model: FusionClassifier, description: dict[str, Any], batch: Batch, rows: list[dict[str, Any]], links: int
) -> None:
    output = model(batch.inputs, batch.lengths, return_mass=True)
    classes, task = description["classes"], description["task"]
    for row, logits in zip(rows, output.logits.float(), strict=True):
        if task == "classification":
            scores = logits.softmax(0)
            row["answer"] = classes[int(scores.argmax())]
            row["scores"] = dict(zip(classes, scores.tolist(), strict=True))
        elif task == "multilabel":
            scores = logits.sigmoid()
            row["answer"] = [name for name, score in zip(classes, scores.tolist(), strict=True) if score > 0.5]
            row["scores"] = dict(zip(classes, scores.tolist(), strict=True))
        else:
            row["values"] = dict(zip(classes, logits.tolist(), strict=True))
    if output.mass is not None:
        for row, share in zip(rows, shares_of(output.mass).tolist(), strict=True):
            row["mass"] = dict(zip(model.modalities, share, strict=True))
    try:
        attention = model.attention(batch.inputs, batch.lengths)
    except NotImplementedError:  # a form without attention over tokens
        return
    sizes = [part.shape[2] for part in attention.values()]
    weights = shares_of(torch.cat(list(attention.values()), 2).unsqueeze(1))
    for row, found in zip(rows, weights, strict=True):
        row["links"] = top_links(model, dict(zip(attention, found.split(sizes), strict=True)), links)


def top_links(model: FusionClassifier, weights: dict[str, Tensor], count: int) -> list[dict[str, Any]]:
    """The tokens of one sample with the most attention, most first.

    Args:
        model: whose encoders know the places.
        weights: by modality ``(tokens,)``.
        count: how many at most.
    """
    found = []
    for name, values in weights.items():
        for token in values.topk(min(count, len(values))).indices.tolist():
            weight = values[token].item()
            if weight > 0:
                found.append({"modality": name, "token": token, "weight": weight, **_place(model, name, token)})
    return sorted(found, key=lambda link: -link["weight"])[:count]


def _place(model: FusionClassifier, name: str, token: int) -> dict[str, Any]:
    """Row and column of an image's grid, or seconds of a sound; nothing more is known of a text's token."""
    encoder = model.encoders[name]
    grid = getattr(encoder, "grid", None)
    if grid is not None:
        return {"row": token // grid[1], "column": token % grid[1]}
    log_mel = getattr(encoder, "log_mel", None)
    if log_mel is not None:
        seconds = 2 * log_mel.hop / log_mel.sample_rate  # both encoders of sound take two frames together
        return {"seconds": round(token * seconds, 3)}
    return {}
