"""The demo on a little data: what it writes, that it repeats, what an interruption leaves."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("espeakng_loader", reason="needs the extra demo")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra demo")

from crossmodal.demo.config import quick_config  # noqa: E402
from crossmodal.demo.run import run_demo  # noqa: E402

COMMAND = [sys.executable, "-m", "crossmodal.cli", "demo", "--quick"]
TIMES = ("speed", "seconds")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("demo") for _ in range(2)]
    printed = []
    for folder in folders:
        with open(folder / "printed.txt", "w") as stream:
            run_demo(folder, quick_config(seed=3), stream)
        printed.append((folder / "printed.txt").read_text())
    return folders, printed


@pytest.mark.slow
def test_metrics_have_the_agreed_form(runs):
    metrics = json.loads((runs[0][0] / "metrics.json").read_text())
    for table in ("single", "missing", "noise"):
        assert set(metrics[table]) == {"image", "text", "audio"}
        assert all(0 <= accuracy <= 1 for accuracy in metrics[table].values())
    assert 0 <= metrics["fused"] <= 1
    assert metrics["speed"]


@pytest.mark.slow
def test_pictures_are_written(runs):
    pictures = sorted(runs[0][0].glob("*.png"))
    assert len(pictures) >= 2
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
def test_checkpoint_loads(runs):
    weights = safetensors.load_file(runs[0][0] / "model.safetensors")
    assert weights and all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.slow
def test_same_seed_gives_the_same_metrics(runs):
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in runs[0])
    for key in TIMES:
        del first[key], second[key]
    assert first == second


@pytest.mark.slow
def test_epochs_are_printed_as_loss_and_accuracy(runs):
    line = next(line for line in runs[1][0].splitlines() if "val_accuracy" in line)
    positions = [line.index(name) for name in ("loss: ", "accuracy: ", "val_loss: ", "val_accuracy: ")]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_interrupted_run_leaves_a_checkpoint_that_loads(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "500", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "model.safetensors").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted" in printed and "Traceback" not in printed
    assert safetensors.load_file(tmp_path / "model.safetensors")
