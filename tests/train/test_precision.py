"""Training under autocast: what is learnt, what is kept, and what is said about a CPU that is slow at it."""

import json

import pytest

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")
pytest.importorskip("yaml", reason="needs the extra train")

import torch
from safetensors.torch import load_file

from crossmodal import cli
from crossmodal.train import processes
from tests.train.runs import make_manifest, write_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    make_manifest(folder)
    return folder


def train(folder, precision):
    settings = write_settings(folder, learning_rate=0.01, epochs=4, dropout=0.0, device="cpu")
    out = folder / precision
    arguments = ["train", "--data", str(folder / "m.jsonl"), "--config", str(settings), "--out", str(out)]
    assert cli.main([*arguments, "--precision", precision]) == 0
    return out


@pytest.fixture(scope="module")
def full(folder):
    return [row["loss"] for row in json.loads((train(folder, "no") / "metrics.json").read_text())["history"]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_full_precision_does(folder, full, precision):
    out = train(folder, precision)
    losses = [row["loss"] for row in json.loads((out / "metrics.json").read_text())["history"]]
    assert losses != full  # or nothing ran in half precision
    # Of one bfloat16 digit in the logits; small losses, of sure answers, move by more of themselves.
    assert losses == pytest.approx(full, rel=0.05, abs=0.01)
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_cpu_without_instructions_for_a_precision_is_named(folder, capsys, monkeypatch, precision, fast):
    monkeypatch.setattr(processes, "has_instructions", lambda dtype: fast)
    train(folder, precision)
    said = "precision: this CPU has no instructions for bf16" in capsys.readouterr().out
    assert said == (precision == "bf16" and not fast)
