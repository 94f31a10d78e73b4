"""Training: what is minimised, what is printed, what is kept, what an interruption leaves."""

import io
import re

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors", reason="needs the extra demo or train")

from crossmodal.data.batch import Batch
from crossmodal.encoders import TextEncoder
from crossmodal.models import FusionClassifier, modality_sets
from crossmodal.train import Schedule, cross_entropy_over_sets, evaluate, fit, load_checkpoint, save_checkpoint
from crossmodal.train.progress import EpochLine

STEPS = 6


def make_model():
    torch.manual_seed(0)
    encoders = {"left": TextEncoder(12, 8), "right": TextEncoder(12, 8)}
    return FusionClassifier(encoders, channels=8, num_classes=4, width=8, num_heads=2, num_queries=2)


def make_batches(epoch):
    """The label is the word, said in both modalities."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        labels = torch.randint(4, (32,), generator=generator)
        words = (labels + 2).unsqueeze(1)
        ones = torch.ones(32, dtype=torch.int64)
        yield Batch({"left": words, "right": words}, {"left": ones, "right": ones}, labels)


def train(checkpoint, *, epochs=3, batches=make_batches, stream=None):
    model = make_model()
    schedule = Schedule(epochs, STEPS, learning_rate=0.02)
    validation = list(make_batches(1000))
    history = fit(
        model, batches, validation, schedule, checkpoint, description={"who": "test"}, stream=stream or io.StringIO()
    )
    return model, history


def test_training_learns(tmp_path):
    _, history = train(tmp_path / "model.safetensors", epochs=6)
    assert history.val_accuracy[-1] > 0.9 and history.loss[-1] < history.loss[0]


def test_same_seed_trains_the_same(tmp_path):
    first, second = (train(tmp_path / f"{run}.safetensors") for run in range(2))
    assert first[1] == second[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


def test_checkpoint_and_model_hold_the_epoch_with_the_lowest_validation_loss(tmp_path):
    model, history = train(tmp_path / "model.safetensors")
    weights, description = load_checkpoint(tmp_path / "model.safetensors")
    assert description == {"who": "test", "epoch": history.best_epoch + 1}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert evaluate(model, make_batches(1000)).loss == pytest.approx(min(history.val_loss))


@pytest.mark.parametrize(("whole_epochs", "kept"), [(0, 0), (2, 2)])
def test_interruption_leaves_the_best_epoch_or_the_weights_of_the_moment(tmp_path, whole_epochs, kept):
    def interrupted(epoch):
        for step, batch in enumerate(make_batches(epoch)):
            if epoch == whole_epochs and step == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model.safetensors", batches=interrupted)
    weights, description = load_checkpoint(tmp_path / "model.safetensors")
    assert description["epoch"] == kept
    make_model().load_state_dict(weights)


def test_gradient_that_is_not_finite_stops_training(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.fusion.queries.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(model, make_batches, [], Schedule(1, STEPS), tmp_path / "model.safetensors", description={})


def test_epochs_print_as_keras_prints_them(tmp_path):
    stream = io.StringIO()
    train(tmp_path / "model.safetensors", epochs=2, stream=stream)
    number = r"\d+\.\d{4}"
    epoch = (
        rf"Epoch {{}}/2\n{STEPS}/{STEPS} \[={{{{30}}}}\] - \d+s \d+ms/step - "
        rf"loss: {number} - accuracy: {number} - val_loss: {number} - val_accuracy: {number}\n"
    )
    epoch = epoch.replace("{4}", "{{4}}")
    assert re.fullmatch(epoch.format(1) + epoch.format(2), stream.getvalue())


def test_terminal_gets_a_bar_that_moves():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    line = EpochLine(10, stream)
    line.update(5, loss=1.0)
    line.finish(loss=0.5)
    assert f"5/10 [{'=' * 15}>{'.' * 14}]" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def test_objective_is_the_sum_of_cross_entropies():
    logits, labels, sets = torch.randn(3, 4, 5), torch.randint(5, (4,)), modality_sets(2)
    lengths = {"a": torch.ones(4), "b": torch.ones(4)}
    wanted = [nn.functional.cross_entropy(row, labels) for row in logits]
    objective = cross_entropy_over_sets(logits, labels, sets, lengths)
    torch.testing.assert_close(objective.total, sum(wanted))
    torch.testing.assert_close(objective.full, wanted[0])


def test_objective_leaves_out_what_cannot_be_answered():
    """Sets of two modalities: both, b, a. Sample 0 has only a, so that its answer from b is no one's fault."""
    logits, labels, sets = torch.randn(3, 4, 5), torch.randint(5, (4,)), modality_sets(2)
    lengths = {"a": torch.ones(4), "b": torch.tensor([0, 1, 1, 1])}
    before = cross_entropy_over_sets(logits, labels, sets, lengths).total
    logits[sets.tolist().index([False, True]), 0] += torch.randn(5)
    torch.testing.assert_close(cross_entropy_over_sets(logits, labels, sets, lengths).total, before)


def test_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, nn.Linear(2, 2), {"number": 1})

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, nn.Linear(2, 2), {"number": 2})
    assert load_checkpoint(path)[1] == {"number": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is not a crossmodal checkpoint"):
        load_checkpoint(path)
