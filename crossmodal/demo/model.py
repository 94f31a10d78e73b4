"""The demo's models: built from a description that travels inside the checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossmodal.data.digit_trio import NUM_CLASSES
from crossmodal.data.spoken_digits import SAMPLE_RATE
from crossmodal.data.vocabulary import Vocabulary
from crossmodal.demo.config import DemoConfig
from crossmodal.encoders import AudioEncoder, ImageEncoder, TextEncoder
from crossmodal.models import FusionClassifier, Implementation
from crossmodal.train.checkpoint import load_checkpoint


def describe_model(config: DemoConfig, modalities: Sequence[str], vocabulary: Vocabulary) -> dict[str, Any]:
    """What :func:`build_model` has to know, ready for JSON."""
    return {
        "modalities": list(modalities),
        "width": config.width,
        "num_heads": config.num_heads,
        "num_queries": config.num_queries,
        "num_classes": NUM_CLASSES,
        "image_size": [8, 8],
        "sample_rate": SAMPLE_RATE,
        "vocabulary": vocabulary.words,
    }


def build_model(
    description: dict[str, Any], *, seed: int = 0, implementation: Implementation = "fused"
) -> FusionClassifier:
    """A fresh model with weights drawn from ``seed``; the global random state is left as it was."""
    width = description["width"]
    height, breadth = description["image_size"]
    makers = {
        "image": lambda: ImageEncoder((height, breadth), channels=width),
        "text": lambda: TextEncoder(len(Vocabulary(description["vocabulary"])), width),
        "audio": lambda: AudioEncoder(description["sample_rate"], width),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders: dict[str, nn.Module] = {name: makers[name]() for name in description["modalities"]}
        return FusionClassifier(
            encoders,
            channels=width,
            num_classes=description["num_classes"],
            width=width,
            num_heads=description["num_heads"],
            num_queries=description["num_queries"],
            implementation=implementation,
        )


def load_model(path: Path, *, implementation: Implementation = "fused") -> FusionClassifier:
    """The model of a checkpoint that the demo wrote, in evaluation mode.

    Raises:
        MissingExtraError: when safetensors is not installed.
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no checkpoint of this package.
    """
    weights, description = load_checkpoint(path)
    model = build_model(description, implementation=implementation)
    model.load_state_dict(weights)
    return model.eval()
