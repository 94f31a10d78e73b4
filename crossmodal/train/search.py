"""Ranking samples of one modality by a query of another."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from crossmodal.data.sample import Sample
from crossmodal.models.two_tower import TwoTower
from crossmodal.train.model import Model
from crossmodal.train.predict import predict


def search(
    model: Model,
    description: dict[str, Any],
    queries: Iterable[Sample],
    among: Iterable[Sample],
    modality: str,
    *,
    count: int = 5,
) -> Iterator[dict[str, Any]]:
    """For each query its nearest samples, nearest first; rows are ready for JSON.

    Args:
        model, description: from :func:`crossmodal.train.model.load_model`.
        queries: each is asked by every modality that it has, but ``modality``, unless it has no other.
        among: what is ranked; samples without ``modality`` are left out.
        modality: what the samples are ranked by.
        count: how many are told.

    Raises:
        ValueError: at once when the model is no two towers or does not know ``modality``; with the first row, when
            nothing is left to rank.
    """
    if not isinstance(model, TwoTower):
        raise ValueError("search needs a model of two towers: crossmodal train --fusion two_tower")
    if modality not in model.modalities:
        raise ValueError(f"modality must be one of {', '.join(model.modalities)}, got {modality!r}")
    return _ranked(model, description, queries, among, modality, count)


def _ranked(
    model: TwoTower,
    description: dict[str, Any],
    queries: Iterable[Sample],
    among: Iterable[Sample],
    modality: str,
    count: int,
) -> Iterator[dict[str, Any]]:
    ranked = [row for row in predict(model, description, among) if modality in row["embeddings"]]
    if not ranked:
        raise ValueError(f"among must hold at least one sample with {modality}, got none")
    table = torch.tensor([row["embeddings"][modality] for row in ranked])
    for query in predict(model, description, queries):
        asking = {name: vector for name, vector in query["embeddings"].items() if name != modality}
        for name, vector in (asking or query["embeddings"]).items():
            cosines = table @ torch.tensor(vector)
            best = cosines.topk(min(count, len(ranked)))
            yield {
                "query": query["name"],
                "by": name,
                "found": [
                    {"name": ranked[index]["name"], "cosine": cosine}
                    for cosine, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
            }
