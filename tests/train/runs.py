"""A small manifest, and commands on it in processes of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "width": 16,
    "num_queries": 2,
    "ema": 0.9,
    "dropout": 0.2,
    "modality_dropout": 0.2,
    "checkpoint_every": 1,
    "options": {"image_size": [1, 8, 8]},
    "encoders": {"image": {"name": "vit", "patch": 4, "layers": 1}},
}


def make_manifest(folder, rows=60):
    """The label is the word, and the bright half of the image."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra train")
    rng = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        bright = int(rng.integers(2))
        pixels = rng.integers(0, 80, (8, 8))
        pixels[:, 4 * bright : 4 * bright + 4] += 150
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
        split = ("train", "train", "train", "val", "test")[row % 5]
        text = "" if row % 7 == 0 else f"it is {('left', 'right')[bright]} {row % 3}"
        lines.append({"image": f"{row}.png", "text": text, "label": ("left", "right")[bright], "split": split})
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "m.jsonl"


def write_settings(folder, **more):
    yaml = pytest.importorskip("yaml", reason="needs the extra train")
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **more}))
    return path


def start(*arguments, **options):
    """A `crossmodal` command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "crossmodal.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process, timeout=120):
    """Its status, output and errors."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, errors


def run(*arguments, **options):
    """The same at once, which must go well."""
    status, out, errors = finish(start(*arguments, **options))
    assert status == 0, errors
    return out
