"""Two processes that train together, and what happens when one of them dies."""

import json
import os
import shutil
import signal
import socket
import time

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
yaml = pytest.importorskip("yaml", reason="needs the extra train")

from tests.train.runs import finish, make_manifest, run, start, write_settings  # noqa: E402

# Nothing that is drawn per process: the two must see what the one sees.
STILL = {"dropout": 0.0, "modality_dropout": 0.0, "epochs": 2}
if torch.accelerator.is_available():
    STILL["device"] = "cpu"  # two processes may have one GPU


def pair(*arguments):
    """The same command in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [start(*arguments, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


def history(out):
    return [
        (row["loss"], row["val_loss"], row["val_accuracy"])
        for row in json.loads((out / "metrics.json").read_text())["history"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_with_twice_the_batch_learns(tmp_path, parallel):
    manifest = make_manifest(tmp_path, rows=40)
    settings = write_settings(tmp_path, **STILL, parallel=parallel)
    run("train", "--data", manifest, "--config", settings, "--batch-size", 8, "--out", tmp_path / "one")
    processes = pair("train", "--data", manifest, "--config", settings, "--batch-size", 4, "--out", tmp_path / "two")
    for status, _, errors in map(finish, processes):
        assert status == 0, errors
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_and_an_adversary_with_steps_of_its_own(tmp_path, parallel):
    """Contrast is within a process: the towers are not those of one with twice the batch."""
    manifest = make_manifest(tmp_path, rows=60)
    own = {"fusion": "two_tower", "adversary": "discriminator", "adversary_steps": 2, "codes": 4, "code_groups": 4}
    settings = write_settings(tmp_path, **STILL, parallel=parallel, **own)
    processes = pair("train", "--data", manifest, "--config", settings, "--batch-size", 8, "--out", tmp_path / "two")
    for status, _, errors in map(finish, processes):
        if parallel == "ddp":
            assert status == 0, errors
        else:
            assert status != 0 and "parallel must be ddp for two towers" in errors
    if parallel == "ddp":
        run("train", "--resume", tmp_path / "two")  # by any number of processes


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_go_on_with_an_average_of_the_weights(tmp_path, parallel):
    """As one process does from the same state; with a form whose only modality asks nobody."""
    manifest = make_manifest(tmp_path, rows=40)
    settings = write_settings(
        tmp_path, **{**STILL, "epochs": 1}, parallel=parallel, fusion="cross", modalities=["image"]
    )
    two, one = tmp_path / "two", tmp_path / "one"
    processes = pair("train", "--data", manifest, "--config", settings, "--batch-size", 4, "--out", two)
    for status, _, errors in map(finish, processes):
        assert status == 0, errors
    shutil.copytree(two, one)
    for out, batch_size in ((two, 4), (one, 8)):
        values = yaml.safe_load((out / "config.yaml").read_text())
        (out / "config.yaml").write_text(yaml.safe_dump({**values, "epochs": 2, "batch_size": batch_size}))
    run("train", "--resume", one)
    for status, _, errors in map(finish, pair("train", "--resume", two)):
        assert status == 0, errors
    assert len(history(two)) == 2
    assert history(two)[1] == pytest.approx(history(one)[1], rel=1e-3)


@pytest.mark.slow
def test_one_of_two_killed_ends_the_other_with_an_error_and_the_run_goes_on(tmp_path):
    manifest = make_manifest(tmp_path, rows=40)
    settings = write_settings(tmp_path, **{**STILL, "epochs": 400})
    out = tmp_path / "run"
    processes = pair("train", "--data", manifest, "--config", settings, "--batch-size", 4, "--out", out)
    try:
        deadline = time.monotonic() + 180
        while not (out / "state.safetensors").exists():
            assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(processes[1].pid, signal.SIGKILL)
        status, _, errors = finish(processes[0], timeout=90)
    finally:
        for process in processes:
            process.kill()
    assert status == 1
    assert "another process of the run" in errors and "--resume" in errors and "Traceback" not in errors
    state = (out / "state.safetensors").read_bytes()
    again = start("train", "--resume", out)
    try:
        deadline = time.monotonic() + 180
        while (out / "state.safetensors").read_bytes() == state:
            assert again.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        again.kill()
        printed, _ = again.communicate()
    assert "Going on from epoch" in printed
