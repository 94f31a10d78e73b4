"""Pictures of a run: which classes are taken for which, and what single samples attended to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossmodal.data.collate import Collate
from crossmodal.data.sample import Dataset
from crossmodal.demo.style import COLORS, INK, Picture
from crossmodal.models.fusion_classifier import FusionClassifier

_LARGEST = 40  # classes; more cannot be read


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> bool:
    """A square of shares, rows the true classes; False where there are too many classes to draw.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    if len(classes) > _LARGEST:
        return False
    counts = torch.tensor(confusion, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    edge = 3 + 0.35 * len(classes)
    picture = Picture(edge + 1, edge, "Confusion", "row: the true class, column: the answer, share of the row")
    axes = picture.axes(picture.figure.add_gridspec(1, 1, left=0.2, right=0.96, top=0.82, bottom=0.14)[0, 0])
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            share = shares[row, column].item()
            if share >= 0.005:
                color = "white" if share > 0.5 else INK
                axes.text(column, row, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=color)
    # Their names are a user's; a dollar sign is one.
    axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    picture.save(path)
    return True


def draw_attention(
    model: FusionClassifier, collate: Collate, dataset: Dataset, classes: Sequence[str], path: Path, count: int = 4
) -> bool:
    """The first samples of a data set with the attention on every modality; False for a form without any.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    batch = collate([dataset[index] for index in range(min(count, len(dataset)))])
    try:
        attention = model.attention(batch.inputs, batch.lengths)
    except NotImplementedError:
        return False
    with torch.no_grad():
        answers = model(batch.inputs, batch.lengths).logits.argmax(1).tolist()
        tokens = dict(zip(model.modalities, model.encode(batch.inputs, batch.lengths), strict=True))
    names = model.modalities
    rows = len(answers)
    picture = Picture(3.2 * len(names) + 1.5, 2.2 * rows + 1, "Attention", "mean over queries and heads")
    grid = picture.figure.add_gridspec(
        rows, len(names), left=0.06, right=0.97, top=1 - 0.9 / (2.2 * rows + 1), bottom=0.05
    )
    for row in range(rows):
        for column, name in enumerate(names):
            weights = attention[name][row].mean(0)
            one = tokens[name]
            if one is not None and batch.inputs[name].ndim == 2:  # a sequence, beyond whose tokens there is padding
                weights = weights[: max(1, int(one.lengths[row]))]
            truth = classes[int(batch.labels[row])] if batch.labels.ndim == 1 else ""
            title = f"{truth}, answered {classes[answers[row]]}; " if column == 0 and truth else ""
            axes = picture.axes(grid[row, column], f"{title}{name} {weights.sum().item():.0%}")
            _draw(axes, name, model.encoders[name], batch.inputs[name][row], int(batch.lengths[name][row]), weights)
    picture.save(path)
    return True


def _draw(axes: Any, name: str, encoder: Any, values: torch.Tensor, length: int, weights: torch.Tensor) -> None:
    color = COLORS.get(name, INK)
    if values.ndim == 3:
        _draw_image(axes, values, getattr(encoder, "grid", None), weights, color)
        return
    if values.is_floating_point():
        seen = values[: max(length, 1)].numpy()
        axes.plot(np.linspace(0, 1, len(seen)), seen, color=INK, linewidth=0.4, alpha=0.6)
        axes.set(yticks=[], xticks=[])
        axes = axes.twinx()
    _draw_bars(axes, weights, color)


def _draw_image(
    axes: Any, pixels: torch.Tensor, grid: tuple[int, int] | None, weights: torch.Tensor, color: str
) -> None:
    height, width = pixels.shape[1:]
    axes.imshow(pixels.mean(0).numpy(), cmap="gray_r", extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    if grid is not None:
        axes.imshow(weights.view(grid).numpy(), cmap="inferno", alpha=0.5, extent=(0, width, height, 0))
        return
    # Where the tokens lie is not known, nor whether each lies anywhere: they stand in a row at the foot of the image.
    foot = axes.inset_axes((0, 0, 1, 0.25))
    _draw_bars(foot, weights, color)
    foot.set_axis_off()


def _draw_bars(axes: Any, weights: torch.Tensor, color: str) -> None:
    axes.bar(
        (np.arange(len(weights)) + 0.5) / len(weights), weights.numpy(), width=1 / len(weights), color=color, alpha=0.5
    )
    axes.set(xlim=(0, 1), xticks=[])
