"""A finished run, opened again: its model, and how good it is on any data."""

import json
from pathlib import Path
from typing import Any

import torch

from crossmodal.data.collate import Collate
from crossmodal.data.manifest import digest_of
from crossmodal.data.open import NAMES, open_part
from crossmodal.models.fusion_classifier import FusionClassifier
from crossmodal.train.config import TrainConfig, make_config, read_config
from crossmodal.train.examine import examine
from crossmodal.train.model import TWO_TOWER, Model, load_model, modalities_of
from crossmodal.train.pictures import draw_attention, draw_confusion
from crossmodal.train.run import ATTENTION, CONFIG, CONFUSION, EVALUATION, MODEL, RunError
from crossmodal.train.state import write_text


def open_run(out: Path) -> tuple[Model, dict[str, Any], TrainConfig]:
    """The best model of a run, its description and the run's settings.

    Raises:
        RunError: when ``out`` holds no run, or no epoch of it was over.
    """
    if not (out / CONFIG).exists():
        raise RunError(f"{out} holds no run: there is no {CONFIG}")
    if not (out / MODEL).exists():
        raise RunError(f"{out} holds no model yet: no epoch was over")
    config = make_config(read_config(out / CONFIG))
    torch.set_num_threads(config.threads)
    return *load_model(out / MODEL), config


def evaluate_run(
    out: Path, *, data: str | None = None, root: str | None = None, split: str | None = None
) -> dict[str, Any]:
    """What :func:`crossmodal.train.examine.examine` finds, also written to ``eval.json``; draws pictures beside it.

    ``eval.json`` is written last: where it is new, the pictures are of the same evaluation.
    ``skipped`` says what was wrong with each row that was left out.

    Args:
        out: the folder of the run.
        data, root: other data, or the same in another place; None: those of the run. They are read as the run's own,
            with its tokenizer and its classes, and need no other split than the one that is asked for. Paths of a
            manifest in another place are relative to its own folder where ``root`` is None.
        split: ``train``, ``validation`` or ``test``; of a manifest also ``all``. None: ``test``, or all of another
            manifest in which no row names a split. The run's own manifest is none other where its path or its content
            is the same: rows that were learnt from are no test.

    Raises:
        RunError: when ``out`` holds no model.
        ValueError, FileNotFoundError: for data that do not fit.
    """
    model, description, config = open_run(out)
    if root is None and (data is None or data in NAMES or _same_file(data, config.data)):
        root = config.root
    if split is None and _is_own(data, config, description):
        split = "test"
    dataset, split, skipped = open_part(
        data or config.data,
        None if root is None else Path(root),
        split,
        reader=description["data"]["reader"],
        # What two towers have learnt is which samples belong together, whatever their labels are.
        classes=None if description["kind"] == TWO_TOWER else description["classes"],
        only=tuple(description["modalities"]),
        seed=config.seed,
        strict=config.strict,
        options=config.options,
    )
    found = {"split": split, **examine(model, description, dataset, config), "skipped": skipped}
    if "confusion" in found:
        draw_confusion(found["confusion"], description["classes"], out / CONFUSION)
    if isinstance(model, FusionClassifier):
        collate = Collate(modalities_of(description))
        draw_attention(model, collate, dataset, description["classes"], out / ATTENTION)
    write_text(out / EVALUATION, json.dumps(found, indent=2) + "\n")
    return found


def _is_own(data: str | None, config: TrainConfig, description: dict[str, Any]) -> bool:
    """Whether these are the data of the run, by their name, place or content."""
    if data is None or data == config.data:
        return True
    if data in NAMES or config.data in NAMES or not Path(data).is_file():
        return False
    # Runs from before there was a digest have none.
    return _same_file(data, config.data) or description["data"].get("digest") == digest_of(Path(data))


def _same_file(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
