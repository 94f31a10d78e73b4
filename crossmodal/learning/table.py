"""The results as tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from crossmodal.learning.cases import TASKS

TITLES = {
    "clean": "AV-MNIST, clean",
    "speaker": "AV-MNIST, held-out speakers",
    "hard": "AV-MNIST, hard",
    "find": "AV-Find",
    "retrieval": "Image to speech, clean",
    "sentences": "Number sentences",
}
Column = tuple[str, tuple[str, ...]]

_COLUMNS: dict[str, tuple[Column, ...]] = {
    "default": (
        ("test accuracy", ("test", "accuracy")),
        ("without image", ("test", "missing", "image")),
        ("without audio", ("test", "missing", "audio")),
    ),
    "find": (
        ("test accuracy", ("test", "accuracy")),
        ("strongest link in the right cell", ("strongest",)),
        ("mass in the right cell", ("mass",)),
    ),
    "retrieval": (
        ("recall@1 by class", ("test", "accuracy")),
        ("back", ("test", "accuracy_back")),
        ("modality gap", ("test", "gap")),
        ("told apart", ("discriminator",)),
    ),
    "sentences": (
        ("character error rate", ("test", "loss")),
        ("whole sentences right", ("test", "accuracy")),
        ("right without image", ("test", "missing", "image")),
    ),
}


# What a reader has to know about how the rows came about.
_NOTES = {
    "find": (
        "In training both are also asked which digit is spoken and which is in each cell; where to look is never "
        "told. The strongest link is that of the right answers alone."
    ),
    "hard": (
        "Fused models begin with the encoders of the single models of the same seed and learn for one more epoch; "
        "the sum has nothing to learn."
    ),
    "clean": "All but the single models begin with the encoders of these.",
    "speaker": "All but the single models begin with the encoders of these.",
    "retrieval": "Towers begin with the encoders of the clean task's single models.",
}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """One table per task, in Markdown: mean over the seeds, and in brackets half of the range."""
    parts = []
    for task in TASKS:
        found = [row for row in rows if row["task"] == task]
        if found:
            parts.append(_table(task, found))
            if task in _NOTES:
                parts.append(_NOTES[task])
    return "\n\n".join(parts)


def speed_sentence(rows: Sequence[dict[str, Any]]) -> str:
    """What a training step of the hard task's model costs, in a sentence; empty where it was not measured."""
    found = [row for row in rows if row["task"] == "speed"]
    if not found:
        return ""
    row = found[-1]
    times = row["milliseconds"]
    making = row["data_milliseconds"] / (row["data_milliseconds"] + times["fused"])
    machine = row["machine"]
    return (
        f"A training step of the hard task's model, {machine['cpu']}, {machine['threads']} thread: "
        f"{times['fused']:.0f} ms; with plain torch in the place of the fused operators {times['reference']:.0f} ms "
        f"({row['speedup']:.2f}x). Of the step {row['attention_share']:.0%} is attention and "
        f"{row['encoder_share']:.0%} the encoders, attention in them included; making the batch, where no other "
        f"process does it, takes {making:.0%} of the whole."
    )


def _table(task: str, rows: Sequence[dict[str, Any]]) -> str:
    columns = _COLUMNS.get(task, _COLUMNS["default"])
    forms = [form for form in TASKS[task][1] if any(row["form"] == form for row in rows)]
    lines = [
        f"| {TITLES[task]} | {' | '.join(title for title, _ in columns)} | seeds |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for form in forms:
        chosen = [row for row in rows if row["form"] == form]
        cells = [_cell([value for row in chosen if (value := _at(row, path)) is not None]) for _, path in columns]
        lines.append(f"| {form} | {' | '.join(cells)} | {len(chosen)} |")
    return "\n".join(lines)


def _at(row: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = row
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return float(value) if isinstance(value, int | float) else None


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({(max(values) - min(values)) / 2:.4f})"
