"""Every kind of data and model goes through the same loop."""

import functools
import io
import json

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("soundfile", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data import av_find, digit_strings
from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.manifest import ManifestOptions, manifest_splits
from crossmodal.train.answers import answers_of
from crossmodal.train.config import make_config
from crossmodal.train.evaluation import evaluate_run, open_run
from crossmodal.train.inputs import Inputs
from crossmodal.train.learners import make_learner
from crossmodal.train.model import modalities_of
from crossmodal.train.predict import predict
from crossmodal.train.presets import PRESETS
from crossmodal.train.run import start_run
from tests.data.recorded import make_root
from tests.train.runs import SETTINGS, make_manifest

LABELS = {
    "multilabel": {"left": "left;dark", "right": "right"},
    "regression": {"left": "-1;0.5", "right": "1;0.5"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("recorded"))


@pytest.mark.parametrize("task", LABELS)
def test_other_tasks_than_classification_are_learnt_and_predicted(tmp_path, task):
    manifest = make_manifest(tmp_path)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(json.dumps({**row, "label": LABELS[task][row["label"]]}) for row in rows))
    options = {"image_size": [1, 8, 8], "task": task}
    settings = {**SETTINGS, "epochs": 25, "learning_rate": 0.01, "dropout": 0.0, "options": options}
    out = tmp_path / "run"
    metrics = start_run(make_config({**settings, "data": str(manifest)}), out, io.StringIO())
    # Regression: the second output is the same for all, so that nothing of its variance can be explained.
    assert metrics["test"]["accuracy"] > 0.9 if task == "multilabel" else metrics["test"]["error"] < 0.3
    model, description, _ = open_run(out)
    (row,) = predict(model, description, Inputs(description).samples([tmp_path / "0.png"]))
    if task == "multilabel":
        assert set(row["scores"]) == {"left", "dark", "right"} and set(row["answer"]) <= set(row["scores"])
    else:
        assert set(row["values"]) == {"output 0", "output 1"}


@pytest.mark.parametrize("data", ["avmnist-hard", "avfind", "avfind-text", "digit-strings"])
def test_recorded_data_train_with_their_presets(root, tmp_path, data, monkeypatch):
    """One step: everything fits together; nothing is learnt from noise."""
    for module in (av_find, digit_strings):
        monkeypatch.setattr(module, "_SIZES", {"train": 16, "validation": 8, "test": 8})
    changes = {"epochs": 1, "samples": 16, "batch_size": 16}
    config = make_config({**PRESETS[data], **changes, "data": data, "root": str(root)})
    metrics = start_run(config, tmp_path, io.StringIO())
    assert len(metrics["history"]) == 1 and 0 <= metrics["test"]["accuracy"] <= 1
    assert evaluate_run(tmp_path)["loss"] == metrics["test"]["loss"]


def test_decoder_trains_in_the_same_loop(root, tmp_path, monkeypatch):
    monkeypatch.setattr(digit_strings, "_SIZES", {"train": 16, "validation": 8, "test": 8})
    changes = {"epochs": 1, "batch_size": 16, "fusion": "captioner"}
    config = make_config({**PRESETS["digit-strings"], **changes, "data": "digit-strings", "root": str(root)})
    assert "missing" in start_run(config, tmp_path, io.StringIO())["test"]


def test_answers_without_a_modality_are_those_with_it_hidden(tmp_path):
    """One pass answers from every set; hiding each modality in a pass of its own says the same."""
    out = tmp_path / "run"
    config = make_config({**SETTINGS, "epochs": 1, "experts": "product", "data": str(make_manifest(tmp_path))})
    metrics = start_run(config, out, io.StringIO())
    model, description, _ = open_run(out)
    learner, collate = make_learner(description, config), Collate(modalities_of(description))
    dataset = manifest_splits(tmp_path / "m.jsonl", None, ManifestOptions(image_size=(1, 8, 8)), seed=0).test
    for name in model.modalities:
        hidden = functools.partial(Batch.without, modality=name)
        less = learner.measure(answers_of(model, learner, dataset, collate, change=hidden))
        assert metrics["test"]["missing"][name] == pytest.approx(less["accuracy"])


def test_run_begins_with_the_encoders_of_others(tmp_path):
    same = {**SETTINGS, "epochs": 1, "data": str(make_manifest(tmp_path))}
    start_run(make_config({**same, "modalities": ["text"]}), tmp_path / "a", io.StringIO())
    still = {**same, "learning_rate": 1e-12}
    start_run(make_config({**still, "start": {"text": str(tmp_path / "a")}}), tmp_path / "b", io.StringIO())
    first, second = (open_run(tmp_path / name)[0].state_dict() for name in "ab")
    shared = [name for name in first if name.startswith(("encoders.text.", "to_common.text."))]
    assert shared
    for name in shared:
        torch.testing.assert_close(first[name], second[name])
    with pytest.raises(ValueError, match=r"start must name runs with the same encoders\.image"):
        start_run(make_config({**still, "start": {"image": str(tmp_path / "a")}}), tmp_path / "c", io.StringIO())
