"""The results as tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from crossmodal.learning.cases import QUALITY, TASKS

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
        "Fused models begin as the sum of the log-probabilities of the single models of the same seed, and learn for "
        "one epoch more. Two of them, queries without experts and queries with quality, have no answer of each "
        "modality to add up, and begin with the encoders of the single models alone. The sum has nothing to learn."
    ),
    "clean": "All but the single models begin with the encoders of these.",
    "speaker": "Fused models begin as the sum of the log-probabilities of the single models.",
    "retrieval": (
        "Towers begin with the encoders of the clean task's single models, which stay as they are but in one row. Told "
        "apart: by a fresh discriminator; chance is 0.5. The discriminator of training works on codes, as in the row "
        "above it, for eight epochs; the others have four. Its epoch is chosen by how well modalities are told apart, "
        "too."
    ),
    "sentences": (
        "In training the image is also asked which digit is in each of its five places; which one is spoken when is "
        "never told. CTC begins with the whole model of the first row, a decoder with its encoder."
    ),
}


_HEAD = (
    "On test data, the epoch selected on validation data; mean over the seeds, whose number is in the last column, and "
    "in brackets half of their range."
)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """One table per task, in Markdown; empty without rows."""
    parts = []
    for task in TASKS:
        found = [row for row in rows if row["task"] == task]
        if found:
            parts.append(_table(task, found))
            if task in _NOTES:
                parts.append(_NOTES[task])
    if masses := [row["mass_by_snr"] for row in rows if "mass_by_snr" in row]:
        parts.append(_mass_table(masses))
    return "\n\n".join([_HEAD, *parts]) if parts else ""


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    """What a training step costs, in Markdown; empty where it was not measured."""
    found = [row for row in rows if row["task"] == "speed"]
    if not found:
        return ""
    machine = found[-1]["machine"]
    lines = [
        f"| training step, {machine['cpu']}, {machine['isa']}, {machine['threads']} thread | fused | plain torch "
        "| fused, operators of torch | attention | encoders | making the batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        times = row["milliseconds"]
        making = row["data_milliseconds"] / (row["data_milliseconds"] + times["fused"])
        lines.append(
            f"| {row['form']} | {times['fused']:.0f} ms | {times['reference']:.0f} ms, {row['speedup']:.2f}x as long "
            f"| {times['operators']:.0f} ms, {row['operator_speedup']:.2f}x as long "
            f"| {row['attention_share']:.0%} | {row['encoder_share']:.0%} | {making:.0%} |"
        )
    lines += [
        "",
        "Plain torch has torch's GRU and convolutions too; what follows it differs from fused by the operators alone, "
        "and by pools that project their tokens. Shares of the fused step; attention within encoders counts in both; "
        "the last is of step and batch together, where no other process makes it.",
    ]
    return "\n".join(lines)


def _mass_table(masses: Sequence[dict[str, float]]) -> str:
    """The mean over the seeds of what the sound receives, by signal-to-noise ratio."""
    ratios = sorted(masses[0], key=float, reverse=True)
    cells = [f"{statistics.mean(mass[ratio] for mass in masses):.3f}" for ratio in ratios]
    return "\n".join(
        [
            f"| AV-MNIST, hard: speech over noise, dB | {' | '.join(ratios)} |",
            "|---" * (len(ratios) + 1) + "|",
            f"| attention on sound, {QUALITY} | {' | '.join(cells)} |",
        ]
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
