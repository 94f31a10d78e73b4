"""A run that was killed, at any moment, ends as if it had not been."""

import io
import json
import random
import resource
import signal
import time

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")

from safetensors.torch import load_file

from crossmodal.encoders import ViTEncoder
from crossmodal.train import run as run_module
from crossmodal.train.config import make_config
from crossmodal.train.learner import ClassifierLearner
from crossmodal.train.processes import Processes
from crossmodal.train.run import RunError, Trainer, resume_run, start_run
from tests.train.runs import SETTINGS, finish, make_manifest, start, write_settings

TIMES = ("seconds", "data_share")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_manifest(tmp_path_factory.mktemp("data"))


def config_of(manifest, **more):
    return make_config({**SETTINGS, "data": str(manifest), **more})


def results(out):
    """All that must not depend on whether a run was killed."""
    metrics = json.loads((out / "metrics.json").read_text())
    history = [{k: v for k, v in row.items() if k not in TIMES} for row in metrics["history"]]
    return history, metrics["val"], metrics["test"], load_file(out / "model.safetensors")


def assert_same(first, second):
    assert first[:3] == second[:3]
    assert first[3].keys() == second[3].keys()
    assert all(torch.equal(first[3][name], second[3][name]) for name in first[3])


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    start_run(config_of(manifest), out, io.StringIO())
    return results(out)


class Killed(BaseException):
    """What nothing catches, as nothing catches SIGKILL."""


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 12])
def test_run_killed_after_any_step_ends_the_same(manifest, whole, tmp_path, steps, monkeypatch):
    """Four steps an epoch: in the middle, at its end, at the beginning of the next, before the last validation."""
    taken = 0
    step = Trainer._step

    def counted(self, *arguments):
        nonlocal taken
        step(self, *arguments)
        taken += 1
        if taken == steps:
            raise Killed

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(Killed):
        start_run(config_of(manifest), tmp_path, io.StringIO())
    monkeypatch.setattr(Trainer, "_step", step)
    resume_run(tmp_path, io.StringIO())
    assert_same(results(tmp_path), whole)


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 5), (8, 2), (12, 2), (16, 1)])
def test_run_goes_on_with_the_samples_that_are_left(manifest, tmp_path, batch_size, steps, monkeypatch):
    """Of 36 after two steps of 8; with another number of processes another number of samples make a step."""
    step, taken = Trainer._step, []

    def counted(self, batches, number):
        taken.append(number)
        if taken == [0, 1, 2]:
            raise Killed
        step(self, batches, number)

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(Killed):
        start_run(config_of(manifest, epochs=1, ema=0.0), tmp_path, io.StringIO())
    config = config_of(manifest, epochs=1, ema=0.0, batch_size=batch_size)
    (tmp_path / "config.yaml").write_text(config.as_yaml())
    taken[:] = [None]
    resume_run(tmp_path, io.StringIO())
    assert len(taken) - 1 == steps


@pytest.mark.parametrize("adversary", ["discriminator", "critic"])
def test_adversary_with_steps_of_its_own_goes_on_the_same(manifest, tmp_path, adversary, monkeypatch):
    """Its optimizer remembers too; killed in the middle of the second epoch."""
    settings = {"fusion": "two_tower", "adversary": adversary, "adversary_steps": 2, "codes": 4, "code_groups": 4}
    config = config_of(manifest, **settings, adversary_strength=1.0)
    start_run(config, tmp_path / "whole", io.StringIO())
    taken = 0
    step = Trainer._step

    def counted(self, *arguments):
        nonlocal taken
        step(self, *arguments)
        taken += 1
        if taken == 6:
            raise Killed

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(Killed):
        start_run(config, tmp_path / "torn", io.StringIO())
    monkeypatch.setattr(Trainer, "_step", step)
    kept = load_file(tmp_path / "torn" / "state.safetensors")
    assert any(name.startswith("learner/") and name.endswith("exp_avg") for name in kept)
    resume_run(tmp_path / "torn", io.StringIO())
    assert_same(results(tmp_path / "torn"), results(tmp_path / "whole"))


@pytest.mark.parametrize("write", range(1, 12, 3))
def test_run_killed_during_any_write_ends_the_same(manifest, whole, tmp_path, write, monkeypatch):
    """The new file is half written, beside its place."""
    import safetensors.torch

    writes = 0
    save = safetensors.torch.save_file

    def torn(tensors, path, metadata):
        nonlocal writes
        writes += 1
        if writes == write:
            path.write_bytes(b"half of it")
            raise Killed
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", torn)
    with pytest.raises(Killed):
        start_run(config_of(manifest), tmp_path, io.StringIO())
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    resume_run(tmp_path, io.StringIO())
    assert_same(results(tmp_path), whole)


@pytest.mark.slow
def test_process_that_is_killed_for_real_ends_the_same(manifest, whole, tmp_path):
    settings = write_settings(tmp_path)
    out = tmp_path / "run"
    process = start("train", "--data", manifest, "--config", settings, "--out", out)
    try:
        deadline = time.monotonic() + 180
        while not (out / "state.safetensors").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        status, _, _ = finish(process)
    assert status == -signal.SIGKILL and not (out / "metrics.json").exists()
    status, printed, errors = finish(start("train", "--resume", out))
    assert status == 0 and "Going on from epoch" in printed, errors
    assert_same(results(out), whole)


def test_log_has_every_epoch_whenever_a_run_is_killed(manifest, tmp_path, monkeypatch):
    """Here when the last epoch's state has just been written: no other epoch writes it down."""
    save = run_module._Run._save_state

    def killed(self):
        save(self)
        if self.trainer.progress.epoch == SETTINGS["epochs"]:
            raise Killed

    monkeypatch.setattr(run_module._Run, "_save_state", killed)
    with pytest.raises(Killed):
        start_run(config_of(manifest), tmp_path, io.StringIO())
    monkeypatch.setattr(run_module._Run, "_save_state", save)
    resume_run(tmp_path, io.StringIO())
    assert [line.partition(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()] == [
        "epoch",
        "1",
        "2",
        "3",
    ]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_other_processes_do_not_wait_for_the_test(manifest, tmp_path, monkeypatch):
    """It may take longer than a process may wait for others."""
    done = []
    for name in ("wait", "close"):
        monkeypatch.setattr(Processes, name, lambda self, name=name: done.append(name))
    examine = run_module.examine
    monkeypatch.setattr(run_module, "examine", lambda *rest: done.append("test") or examine(*rest))
    start_run(config_of(manifest, epochs=1), tmp_path, io.StringIO())
    assert done[-3:] == ["wait", "close", "test"] and done.count("close") == 1


def test_finished_run_can_be_resumed_and_stays_the_same(manifest, whole, tmp_path):
    start_run(config_of(manifest), tmp_path, io.StringIO())
    resume_run(tmp_path, io.StringIO())
    assert_same(results(tmp_path), whole)


def test_accumulated_batches_resume_too(manifest, tmp_path, monkeypatch):
    config = config_of(manifest, accumulate=2, batch_size=4)
    start_run(config, tmp_path / "whole", io.StringIO())
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, b, n: step(self, b, n) if self.progress.epoch < 1 else _kill())
    with pytest.raises(Killed):
        start_run(config, tmp_path / "killed", io.StringIO())
    monkeypatch.setattr(Trainer, "_step", step)
    resume_run(tmp_path / "killed", io.StringIO())
    assert_same(results(tmp_path / "killed"), results(tmp_path / "whole"))


def _kill():
    raise Killed


def test_run_that_began_with_others_resumes_without_them(manifest, tmp_path, monkeypatch):
    """As the sum of single models, with an average that keeps its beginning; both are in the state."""
    single = tmp_path / "text"
    start_run(config_of(manifest, modalities=["text"], epochs=1), single, io.StringIO())
    more = {"start": {"text": str(single)}, "experts": "product", "forget": False}
    start_run(config_of(manifest, **more), tmp_path / "whole", io.StringIO())
    step = Trainer._step

    def killed(self, batches, number):
        step(self, batches, number)
        if self.progress.epoch == 1:
            raise Killed

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(Killed):
        start_run(config_of(manifest, **more), tmp_path / "b", io.StringIO())
    monkeypatch.setattr(Trainer, "_step", step)
    single.rename(tmp_path / "elsewhere")
    resume_run(tmp_path / "b", io.StringIO())
    assert_same(results(tmp_path / "b"), results(tmp_path / "whole"))


def test_encoder_that_draws_from_the_generators_of_numpy_and_python_goes_on_the_same(manifest, tmp_path, monkeypatch):
    """As the masks of Wav2Vec2 do; the process that goes on has drawn other numbers before."""
    forward = ViTEncoder.forward

    def masked(self, inputs, lengths):
        keep = torch.tensor(np.random.random() + random.random()) if self.training else 1.0
        return forward(self, inputs * keep, lengths)

    monkeypatch.setattr(ViTEncoder, "forward", masked)
    start_run(config_of(manifest), tmp_path / "whole", io.StringIO())
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, b, n: step(self, b, n) if self.progress.epoch < 1 else _kill())
    with pytest.raises(Killed):
        start_run(config_of(manifest), tmp_path / "killed", io.StringIO())
    monkeypatch.setattr(Trainer, "_step", step)
    np.random.random(), random.random()
    resume_run(tmp_path / "killed", io.StringIO())
    assert_same(results(tmp_path / "killed"), results(tmp_path / "whole"))


CHANGES = [("num_queries: 2", "num_queries: 3"), ("num_heads: 4", "num_heads: 2"), ("ema: 0.9", "ema: 0.0")]


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_state_of_another_model_is_refused(manifest, tmp_path, old, new):
    """Weights of other shapes, weights that mean something else, no average."""
    start_run(config_of(manifest, epochs=1), tmp_path, io.StringIO())
    settings = (tmp_path / "config.yaml").read_text()
    assert old in settings
    (tmp_path / "config.yaml").write_text(settings.replace(old, new))
    kept = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"state.safetensors holds another model than config.yaml describes"):
        resume_run(tmp_path, io.StringIO())
    assert (tmp_path / "state.safetensors").read_bytes() == kept


def test_state_that_has_learnt_other_words_is_refused(tmp_path):
    """As many words, so that the weights would fit: each would be taken for another."""
    data, out = make_manifest(tmp_path), tmp_path / "run"
    start_run(config_of(data, epochs=1), out, io.StringIO())
    kept = (out / "state.safetensors").read_bytes()
    data.write_text(data.read_text().replace("is left", "is port"))
    with pytest.raises(RunError, match=r"whose text was read with 'left' as token \d, not 'port'; begin again"):
        resume_run(out, io.StringIO())
    assert (out / "state.safetensors").read_bytes() == kept


@pytest.mark.slow
def test_full_disk_ends_with_one_line_and_keeps_what_was_written(manifest, tmp_path):
    """A limit on the size of files stands for the disk: a write beyond it fails as on a full one."""
    settings = write_settings(tmp_path)
    out = tmp_path / "run"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    status, _, errors = finish(start("train", "--data", manifest, "--config", settings, "--out", out, preexec_fn=limit))
    assert status == 1 and "could not be written" in errors and "Traceback" not in errors
    assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
    status, _, errors = finish(start("train", "--resume", out))
    assert status == 0, errors


def test_log_of_a_run_whose_first_epochs_had_less_measured(manifest, tmp_path, monkeypatch):
    """As before an update of the library."""
    save = run_module._Run._save_state

    def killed(self):
        save(self)
        raise Killed

    monkeypatch.setattr(run_module._Run, "_save_state", killed)
    monkeypatch.setitem(SETTINGS, "checkpoint_every", 1000)
    with pytest.raises(Killed):
        start_run(config_of(manifest), tmp_path, io.StringIO())
    monkeypatch.setattr(run_module._Run, "_save_state", save)
    measured = ClassifierLearner.measure
    monkeypatch.setattr(ClassifierLearner, "measure", lambda *a: {**measured(*a), "more": 0.5})
    resume_run(tmp_path, io.StringIO())
    head, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert head.endswith("val_more") and [row.rpartition(",")[2] for row in rows] == ["", "0.5", "0.5"]
