"""The picture of what an example attended to: frames of sound, words, patches of the image."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossmodal.data.batch import Batch
from crossmodal.demo.style import COLORS, FAINT, INK, Picture
from crossmodal.encoders import AudioEncoder, ImageEncoder
from crossmodal.models import FusionClassifier

_LINE = 31  # characters in a line of the sentence


class Example(NamedTuple):
    """One sample, what the model says about it and where it looked.

    Attributes:
        label, prediction: digits.
        confidence: probability of the prediction.
        pixels: ``(height, width)``.
        words: of the sentence.
        mel: ``(frames, bands)`` log-mel.
        seconds_per_frame: of ``mel``.
        image_attention: ``(rows, columns)`` of patches.
        text_attention: ``(words,)``.
        audio_attention: ``(tokens,)``, one token per two frames.

    The attention is the mean over heads and queries; all of it together sums to 1.
    """

    label: int
    prediction: int
    confidence: float
    pixels: Tensor
    words: list[str]
    mel: Tensor
    seconds_per_frame: float
    image_attention: Tensor
    text_attention: Tensor
    audio_attention: Tensor

    @property
    def mass(self) -> dict[str, float]:
        """The share of attention of each modality; sums to 1."""
        parts = {"image": self.image_attention, "text": self.text_attention, "audio": self.audio_attention}
        return {name: part.sum().item() for name, part in parts.items()}


@torch.no_grad()
def explain_batch(model: FusionClassifier, batch: Batch, *, sample_rate: int) -> list[Example]:
    """What the model says about every sample of ``batch`` and where it looks.

    ``batch`` has the modalities image, text and audio and its ``texts``.
    """
    image_encoder, audio_encoder = model.encoders["image"], model.encoders["audio"]
    if not isinstance(image_encoder, ImageEncoder) or not isinstance(audio_encoder, AudioEncoder):
        raise TypeError("model must have this package's encoders of image and audio")
    model.eval()
    probabilities = model(batch.inputs, batch.lengths).logits.softmax(1)
    attention = {name: part.mean(1) for name, part in model.attention(batch.inputs, batch.lengths).items()}
    mel, frames = audio_encoder.log_mel(batch.inputs["audio"], batch.lengths["audio"])
    return [
        Example(
            label=int(batch.labels[row]),
            prediction=int(probabilities[row].argmax()),
            confidence=probabilities[row].max().item(),
            pixels=batch.inputs["image"][row, 0],
            words=words,
            mel=mel[row, : frames[row]],
            seconds_per_frame=audio_encoder.log_mel.hop / sample_rate,
            image_attention=attention["image"][row].view(image_encoder.grid),
            text_attention=attention["text"][row, : len(words)],
            audio_attention=attention["audio"][row, : (frames[row] + 1) // 2],
        )
        for row, words in enumerate(batch.texts or [])
    ]


def choose_examples(examples: list[Example], count: int) -> list[Example]:
    """The first ``count`` that the model gets right, of different digits, with sentences of 8 to 15 words."""
    chosen: dict[int, Example] = {}
    for example in examples:
        if example.prediction == example.label and 8 <= len(example.words) <= 15:
            chosen.setdefault(example.label, example)
    return [*chosen.values(), *examples][:count]


def draw_attention(examples: list[Example], path: Path) -> None:
    """One row per example; dark or bright is where the attention went."""
    height = 1.2 + 2.35 * len(examples)
    picture = Picture(
        13,
        height,
        "Where the fused model looked",
        "one joint softmax over all patches, words and frames; "
        "shading is relative to the strongest token of each modality, the bars show each modality's share",
    )
    grid = picture.figure.add_gridspec(
        len(examples),
        4,
        width_ratios=(1, 3.1, 2.6, 1.15),
        left=0.03,
        right=0.975,
        top=1 - 1.25 / height,
        bottom=0.5 / height,
        wspace=0.16,
        hspace=0.62,
    )
    for row, example in enumerate(examples):
        _draw_image(picture.axes(grid[row, 0], f"image of a {example.label}"), example)
        _draw_words(picture.axes(grid[row, 1], "sentence"), example)
        _draw_sound(picture.axes(grid[row, 2], "sound"), example)
        _draw_mass(picture.axes(grid[row, 3], _verdict(example)), example)
    picture.save(path)


def _verdict(example: Example) -> str:
    sure = f"{example.confidence:.0%}" if example.confidence < 0.995 else ">99%"
    return f"says {example.prediction}, {sure} sure"


def _draw_image(axes: Any, example: Example) -> None:
    height, width = example.pixels.shape
    extent = (0, width, height, 0)
    axes.imshow(example.pixels, cmap="gray_r", extent=extent, vmin=-0.2, vmax=2.4)  # grey at most: heat goes on top
    heat = example.image_attention / example.image_attention.max()
    axes.imshow(heat, cmap=_transparent_to(COLORS["image"]), extent=extent, vmin=0, vmax=1, interpolation="bicubic")
    axes.set(xticks=[], yticks=[], anchor="NW")
    for spine in axes.spines.values():
        spine.set_visible(True)


def _draw_words(axes: Any, example: Example) -> None:
    """Words as on a page, each on a field as dark as its attention."""
    axes.set(xlim=(0, _LINE), ylim=(2.9, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    shade = _transparent_to(COLORS["text"])
    strength = example.text_attention / example.text_attention.max()
    column, line = 0.0, 0
    for word, weight in zip(example.words, strength.tolist(), strict=True):
        size = len(word) + 1.2
        if column + size > _LINE:
            column, line = 0.0, line + 1
        axes.text(
            column + size / 2,
            line,
            word,
            ha="center",
            va="center",
            family="monospace",
            fontsize=13,
            color="white" if weight > 0.6 else INK,
            bbox={"boxstyle": "round,pad=0.3", "facecolor": shade(weight), "edgecolor": "none"},
        )
        column += size


def _draw_sound(axes: Any, example: Example) -> None:
    frames, bands = example.mel.shape
    seconds = frames * example.seconds_per_frame
    axes.imshow(example.mel.T, origin="lower", aspect="auto", cmap="gray_r", extent=(0, seconds, 0, bands), alpha=0.75)
    at = (torch.arange(len(example.audio_attention)) * 2 + 0.5) * example.seconds_per_frame
    curve = example.audio_attention / example.audio_attention.max() * bands * 0.94
    axes.fill_between(at, curve, color=COLORS["audio"], alpha=0.35, linewidth=0)
    axes.plot(at, curve, color=COLORS["audio"], linewidth=2)
    axes.set(xlim=(0, seconds), ylim=(0, bands), yticks=[])
    axes.set_xlabel("seconds", labelpad=1)
    axes.set_ylabel("mel band")


def _draw_mass(axes: Any, example: Example) -> None:
    for row, (name, share) in enumerate(example.mass.items()):
        axes.barh(row, share, color=COLORS[name], height=0.62)
        axes.text(share + 0.03, row, f"{name} {share:.0%}", va="center")
    axes.set(xlim=(0, 1.25), ylim=(2.6, -0.6), xticks=[], yticks=[])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(side == "left")
    axes.spines["left"].set_color(FAINT)


def _transparent_to(color: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    red, green, blue, _ = to_rgba(color)
    return LinearSegmentedColormap.from_list("", [(red, green, blue, 0.0), (red, green, blue, 0.9)])
