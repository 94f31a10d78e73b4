"""Pictures of the numbers: how training went, how good the models are, how fast the operator is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossmodal.demo.scores import Scores
from crossmodal.demo.speed import Timing
from crossmodal.demo.style import COLORS, FAINT, INK, PALE, Picture
from crossmodal.train.fit import History


def draw_training(histories: Mapping[str, History], path: Path) -> None:
    """Loss and accuracy of every model over the epochs."""
    picture = Picture(
        11,
        4.4,
        "Training",
        "solid: validation, dotted: training samples, while they are learnt; the dot is the epoch kept",
    )
    grid = picture.figure.add_gridspec(1, 2, left=0.06, right=0.93, top=0.76, bottom=0.13, wspace=0.24)
    for column, (name, title) in enumerate((("loss", "cross-entropy, nats"), ("accuracy", "accuracy"))):
        axes = picture.axes(grid[0, column], title)
        ends = []
        for model, history in histories.items():
            learnt, kept = getattr(history, name), getattr(history, f"val_{name}")
            epochs = range(1, len(kept) + 1)
            axes.plot(epochs, learnt, color=COLORS[model], linestyle=":", linewidth=1.5)
            axes.plot(epochs, kept, color=COLORS[model], linewidth=2.2)
            axes.plot(history.best_epoch + 1, kept[history.best_epoch], "o", color=COLORS[model])
            ends.append((kept[-1], model))
        axes.set_xlabel("epoch")
        axes.set_xticks(list(epochs))
        axes.set_ylim(bottom=0, top=1 if name == "accuracy" else None)
        axes.grid(axis="y", color=PALE)
        _label_ends(axes, len(epochs), ends)
    picture.save(path)


def draw_results(scores: Scores, timings: Sequence[Timing], path: Path) -> None:
    """Test accuracies beside speed-ups."""
    picture = Picture(
        12,
        4.8,
        "Results",
        "left: a model of one modality alone; the fused model with that modality missing; with noise in its place. "
        "right: time of plain torch over time of the fused operator",
    )
    grid = picture.figure.add_gridspec(
        1, 2, left=0.06, right=0.97, top=0.77, bottom=0.1, wspace=0.5, width_ratios=(1.25, 1)
    )
    _draw_accuracies(picture.axes(grid[0, 0], "test accuracy"), scores)
    _draw_speedups(picture.axes(grid[0, 1], "speed-up"), timings)
    picture.save(path)


def _draw_accuracies(axes: Any, scores: Scores) -> None:
    names = list(scores.single)
    kinds = (("alone", scores.single, 1.0), ("missing", scores.missing, 0.65), ("noise", scores.noise, 0.35))
    for place, name in enumerate(names):
        for shift, (kind, values, strength) in enumerate(kinds):
            x = place + (shift - 1) * 0.28
            axes.bar(x, values[name], width=0.25, color=COLORS[name], alpha=strength)
            ink = "white" if shift < 2 else INK
            axes.text(x, values[name] - 0.02, f"{values[name]:.2f}", ha="center", va="top", fontsize=9, color=ink)
            axes.text(x, 0.02, kind, ha="center", rotation=90, fontsize=9, color=ink)
    axes.axhline(scores.fused, color=COLORS["fused"], linewidth=1.5, linestyle="--")
    axes.text(
        len(names) - 0.5,
        scores.fused,
        f" all\n {scores.fused:.2f}",
        va="center",
        color=COLORS["fused"],
        fontweight="bold",
    )
    axes.set(ylim=(0, 1.08), xlim=(-0.55, len(names) - 0.5), xticks=range(len(names)), xticklabels=names)


def _draw_speedups(axes: Any, timings: Sequence[Timing]) -> None:
    opponents = (("reference", "plain torch", "#7b8794"), ("sdpa", "cat + SDPA", "#d9822b"))
    for row, timing in enumerate(timings):
        for shift, (way, _, color) in enumerate(opponents):
            y = row + (shift - 0.5) * 0.36
            axes.barh(y, timing.speedup[way], height=0.34, color=color)
            axes.text(timing.speedup[way], y, f" {timing.speedup[way]:.1f}x", va="center", fontsize=9)
    for _, label, color in opponents:
        axes.barh(0, 0, color=color, label=label)
    axes.axvline(1, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(timings)), [f"{timing.name}\n{timing.what}" for timing in timings], fontsize=9)
    axes.set_ylim(len(timings) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(max(timing.speedup.values()) for timing in timings))
    axes.legend(loc="lower left", bbox_to_anchor=(0.3, 1.0), ncols=2, fontsize=9, frameon=False)


def _label_ends(axes: Any, epochs: int, ends: list[tuple[float, str]]) -> None:
    """Write each model's name beside the end of its line, moved apart where lines end together."""
    low, high = axes.get_ylim()
    apart = 0.065 * (high - low)
    at = float("-inf")
    for value, model in sorted(ends):
        at = max(value, at + apart)
        axes.text(epochs + 0.08 * max(epochs - 1, 1), at, model, va="center", color=COLORS[model], fontweight="bold")
