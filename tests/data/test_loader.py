"""Loading: two processes share what one would see, a run goes on where it stopped, a dead worker is an error."""

import os
import subprocess
import sys

import pytest
import torch

from crossmodal.data import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.loader import StepSampler, evaluation_loader, train_loader
from crossmodal.data.sample import Modality, Sample

MODALITIES = {"sound": Modality("audio", sample_rate=8000), "words": Modality("text", vocabulary=9)}


class Numbers:
    """Sample i has i % 5 samples of sound, and no words where i is odd."""

    modalities, task, classes, questions = MODALITIES, "classification", ("a",), {}
    deadly = None

    def __len__(self):
        return 23

    def set_epoch(self, epoch):
        pass

    def __getitem__(self, index):
        if index == self.deadly:
            os._exit(1)
        inputs = {"sound": torch.full((index % 5,), float(index))}
        if index % 2 == 0:
            inputs["words"] = torch.arange(1, 3)
        return Sample(inputs, torch.tensor(0), str(index))


def steps(**options):
    return list(StepSampler(23, 4, seed=0, epoch=0, **options))


def test_two_processes_take_the_halves_of_the_doubled_batch():
    whole = list(StepSampler(23, 8, seed=0, epoch=0))
    parts = [steps(rank=rank, world_size=2) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_epoch_holds_every_sample_at_most_once():
    seen = [index for step in steps() for index in step]
    assert len(seen) == 20 == len(set(seen))


def test_epochs_have_their_own_order():
    assert steps() == steps() != list(StepSampler(23, 4, seed=0, epoch=1))


def test_run_goes_on_at_any_step():
    assert steps(first_step=2) == steps()[2:]


def test_epoch_may_be_a_part_of_all_samples():
    assert steps(size_limit=9) == steps()[:2]


def test_too_few_samples_for_a_step_are_refused():
    with pytest.raises(ValueError, match="at least one step of 32 samples, got 23"):
        StepSampler(23, 32, seed=0, epoch=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_the_same_batches(workers):
    sampler = StepSampler(23, 4, seed=0, epoch=0)
    batches: list[Batch] = list(train_loader(Numbers(), Collate(MODALITIES), sampler, workers=workers))
    assert [batch.names for batch in batches] == [[str(i) for i in step] for step in steps()]


def test_batch_is_padded_to_its_own_longest_and_no_further():
    for batch in evaluation_loader(Numbers(), Collate(MODALITIES), 4):
        lengths = batch.lengths["sound"]
        assert lengths.tolist() == [int(name) % 5 for name in batch.names]
        assert batch.inputs["sound"].shape[1] == max(1, int(lengths.max()))
        assert batch.lengths["words"].tolist() == [2 * (int(name) % 2 == 0) for name in batch.names]


def test_evaluation_sees_every_sample_once_in_order():
    names = [name for batch in evaluation_loader(Numbers(), Collate(MODALITIES), 4) for name in batch.names]
    assert names == [str(i) for i in range(23)]


def test_connection_that_a_dying_worker_resets_is_the_same_error(monkeypatch):
    def reset(self):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", reset)
    with pytest.raises(RuntimeError, match="worker exited unexpectedly"):
        list(evaluation_loader(Numbers(), Collate(MODALITIES), 4))


def test_worker_that_dies_is_an_error_and_no_hang():
    """In a process of its own: torch raises from a signal handler, wherever the program is just then."""
    script = """
from tests.data.test_loader import *
data = Numbers()
data.deadly = 11
list(evaluation_loader(data, Collate(MODALITIES), 4, workers=2))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 1 and "exited unexpectedly" in done.stderr


def test_batch_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="samples must hold at least one, got none"):
        Collate(MODALITIES)([])
