"""What goes wrong in a run is told in one line."""

import io
import os
import signal

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data import Batch
from crossmodal.data.manifest_dataset import ManifestDataset
from crossmodal.train.config import make_config, read_config
from crossmodal.train.learner import ClassifierLearner, hide, spoil
from crossmodal.train.run import RunError, resume_run, start_run
from crossmodal.train.schedule import cosine_with_warm_up
from tests.train.runs import SETTINGS, make_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_manifest(tmp_path_factory.mktemp("data"))


def train(manifest, out, **more):
    return start_run(make_config({**SETTINGS, "data": str(manifest), **more}), out, io.StringIO())


def scale_losses(monkeypatch, factor):
    """What is minimised, not what is shown."""
    step = ClassifierLearner.step

    def scaled(self, model, batch):
        result = step(self, model, batch)
        return result._replace(loss=result.loss * factor)

    monkeypatch.setattr(ClassifierLearner, "step", scaled)


def test_gradient_that_is_not_finite_is_named_with_its_step(manifest, tmp_path, monkeypatch):
    scale_losses(monkeypatch, float("nan"))
    with pytest.raises(FloatingPointError, match="the gradient is not finite in epoch 1, step 1"):
        train(manifest, tmp_path)


def test_gradient_that_float16_never_holds_is_named_however_it_is_scaled(manifest, tmp_path, monkeypatch):
    scale_losses(monkeypatch, float("inf"))
    with pytest.raises(FloatingPointError, match="the gradient is not finite in epoch 7, step 4"):
        train(manifest, tmp_path, precision="fp16", epochs=30, sets=False)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_loss_that_is_not_finite_is_named_with_its_step(manifest, tmp_path, precision):
    with pytest.raises(FloatingPointError, match="the loss is not finite in epoch"):
        train(manifest, tmp_path, precision=precision, learning_rate=1e30, max_gradient=1e30)


def test_validation_loss_that_is_a_number_is_better_than_one_that_is_none(manifest, tmp_path, monkeypatch):
    measure, losses = ClassifierLearner.measure, iter([float("nan"), 3.0, 2.0])

    def broken(self, answers):
        found = measure(self, answers)
        return {**found, "loss": next(losses, found["loss"])}

    monkeypatch.setattr(ClassifierLearner, "measure", broken)
    assert train(manifest, tmp_path)["val"]["epoch"] == 3


def test_process_of_batches_that_dies_is_named_and_the_run_can_go_on(manifest, tmp_path, monkeypatch):
    get = ManifestDataset.__getitem__

    def deadly(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, index)

    monkeypatch.setattr(ManifestDataset, "__getitem__", deadly)
    with pytest.raises(RunError, match="a process that makes batches died; go on with --resume"):
        train(manifest, tmp_path, workers=1)
    monkeypatch.setattr(ManifestDataset, "__getitem__", get)
    assert len(resume_run(tmp_path, io.StringIO())["history"]) == SETTINGS["epochs"]


def test_other_errors_stay_what_they_are(manifest, tmp_path, monkeypatch):
    def wrong(self, model, batch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ClassifierLearner, "step", wrong)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        train(manifest, tmp_path)


def test_training_stops_early_when_nothing_gets_better(manifest, tmp_path):
    metrics = train(manifest, tmp_path, epochs=50, patience=2, learning_rate=1e-12, ema=0.0)
    assert len(metrics["history"]) <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "sum"}, "fusion must be one of queries, .*, two_tower, transcriber, captioner, got 'sum'"),
        ({"fusion": "transcriber"}, "fusion must be none of transcriber, captioner for the task classification"),
        ({"encoders": {"picture": {"name": "vit"}}}, "encoders must be for image, text, got picture"),
        (
            {"encoders": {"image": {"name": "vit", "patches": 4}}},
            "vit of image cannot be made with .*'patches'",
        ),
        ({"options": {"image_sizes": [1, 8, 8]}}, "options must be among .*image_size.*, got image_sizes"),
        ({"options": {"image_size": 8}}, "image_size must be channels, height and width, got 8"),
        ({"options": {"task": "ranking"}}, "task must be one of classification, .*, got 'ranking'"),
        ({"options": {"sample_rate": 0}}, "sample_rate must be an int above 0, got 0"),
        ({"encoders": {"image": {"name": "crnn"}}}, "encoder of image must be one of"),
        ({"batch_size": 500}, "at least one step"),
        ({"accumulate": 100}, "at least one step of 800 samples, got 36 samples"),
        ({"quality": True, "fusion": "concat"}, "quality must be False"),
        (
            {"options": {"image_size": [1, 8, 8], "task": "multilabel"}, "experts": "product"},
            "experts must be none or auxiliary",
        ),
        ({"options": {"image_size": [1, 8, 8], "task": "multilabel"}, "fusion": "two_tower"}, "must not be two_tower"),
        ({"spoiled": 0.6}, "spoiled must be at most 1/2, one modality of a sample at most, got 0.6"),
        ({"contrastive": "foo"}, "contrastive must be one of info_nce, sigmoid, got 'foo'"),
        ({"adversary": "foo"}, "adversary must be one of none, discriminator, critic, got 'foo'"),
        ({"experts": "foo"}, "experts must be one of none, auxiliary, product, got 'foo'"),
        ({"encoders": {"image": 3}}, "encoders must hold a name or .* for image, got 3"),
        ({"start": {"image": 3}}, "start must be dict.*, got {'image': 3}"),
        ({"threads": 100_000}, "threads must be 1024 or less, got 100000"),
        ({"seed": 2**70}, r"seed must be below 2\*\*63"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_do_not_fit_are_named(manifest, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(manifest, tmp_path, **settings)


@pytest.mark.parametrize(
    "wrong", [{"fusion": "sum"}, {"data": "no.csv"}, {"start": {"image": "no"}}, {"batch_size": 500}], ids=str
)
def test_mistake_leaves_the_earlier_run_as_it_was(manifest, tmp_path, wrong):
    train(manifest, tmp_path, epochs=1)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises((ValueError, FileNotFoundError)):
        train(**{"manifest": manifest, "out": tmp_path, **SETTINGS, **wrong})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == kept


def test_run_may_begin_with_what_it_takes_the_place_of(manifest, tmp_path):
    train(manifest, tmp_path, epochs=1)
    (tmp_path / "eval.json").write_text("{}")
    train(manifest, tmp_path, epochs=1, start={"image": str(tmp_path)})
    assert not (tmp_path / "eval.json").exists()


def test_checkpoint_has_the_rights_of_other_files(manifest, tmp_path):
    train(manifest, tmp_path, epochs=1)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.yaml").stat().st_mode


def test_setting_whose_name_is_no_text_is_unknown():
    with pytest.raises(ValueError, match="unknown setting 1; known are data"):
        make_config({"data": "x.csv", 1: 2})


def test_encoder_may_be_a_name():
    assert make_config({"data": "x.csv", "encoders": {"image": "vit"}}).encoders == {"image": {"name": "vit"}}


def test_modalities_in_one_text_are_those_of_the_flag():
    assert make_config({"data": "x.csv", "modalities": "image, text"}).modalities == ("image", "text")


def test_settings_survive_their_file(tmp_path):
    pytest.importorskip("yaml", reason="needs the extra train")
    config = make_config({**SETTINGS, "data": "x.csv", "modalities": ["image"], "learning_rate": "1e-3"})
    (tmp_path / "c.yaml").write_text(config.as_yaml())
    assert make_config(read_config(tmp_path / "c.yaml")) == config
    assert config.learning_rate == 1e-3


def test_rate_rises_then_falls_to_nothing():
    rates = [cosine_with_warm_up(step, 100, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[19] == rates[20] == 1.0 and rates[100] == pytest.approx(0)
    assert rates[20:] == sorted(rates[20:], reverse=True)


def make_batch(size=2000):
    ones = torch.ones(size, dtype=torch.int64)
    inputs = {"a": torch.ones(size, 3), "b": torch.full((size, 2), 4)}
    return Batch(inputs, {"a": ones, "b": ones}, ones)


def test_hidden_modalities_never_leave_a_sample_empty():
    lengths = hide(make_batch(), 0.7).lengths
    assert ((lengths["a"] + lengths["b"]) > 0).all()
    assert 0.35 < (lengths["a"] == 0).float().mean() < 0.55  # 0.7, less the half of 0.49 that lose neither


def test_hiding_keeps_something_that_is_there():
    batch = make_batch()
    there = torch.arange(len(batch.labels)) % 3
    some = batch._replace(lengths={"a": (there != 0).long(), "b": (there != 1).long()})
    lengths = hide(some, 0.9).lengths
    assert ((lengths["a"] + lengths["b"]) > 0).all()


def test_at_most_one_modality_is_spoilt_and_only_where_it_is_said():
    batch = make_batch()
    changed, spoiled = spoil(batch, 0.2)
    assert not (spoiled["a"] & spoiled["b"]).any()
    for name in ("a", "b"):
        assert 0.15 < spoiled[name].float().mean() < 0.25
        assert torch.equal(changed.inputs[name][~spoiled[name]], batch.inputs[name][~spoiled[name]])
    assert (changed.inputs["b"][spoiled["b"]] != 4).any()
