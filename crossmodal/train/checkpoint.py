"""Checkpoints: weights and a description in one safetensors file that is whole or not there."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from crossmodal._extras import require
from crossmodal.train.state import DESCRIPTION, write_tensors


def save_checkpoint(path: Path, module: nn.Module, description: dict[str, Any]) -> None:
    """Write the weights of ``module`` and a JSON description of how to build it.

    The file is written beside its place and then renamed: an interrupted or failed save leaves the old one.

    Raises:
        MissingExtraError: when safetensors is not installed.
        OSError: when the folder cannot be written.
    """
    write_tensors(path, module.state_dict(), description)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the description that :func:`save_checkpoint` wrote.

    Raises:
        MissingExtraError: when safetensors is not installed.
        FileNotFoundError: when there is no such file.
        ValueError: when the file is no checkpoint of this package.
    """
    safetensors = require("safetensors", distribution="safetensors", extra="train")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            description = (file.metadata() or {})[DESCRIPTION]
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(description)  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a crossmodal checkpoint: {error}") from error
