"""Every kind of data and model goes through the same loop."""

import dataclasses
import functools
import io
import json
from dataclasses import asdict

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("soundfile", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data import av_find, digit_strings
from crossmodal.data.batch import Batch
from crossmodal.data.collate import Collate
from crossmodal.data.digits import digits
from crossmodal.data.manifest import ManifestOptions, manifest_splits
from crossmodal.data.reader import Reader, ReaderOptions
from crossmodal.data.sample import Modality, Sample
from crossmodal.encoders import TextEncoder
from crossmodal.models import FusionClassifier
from crossmodal.train import evaluation, pictures
from crossmodal.train.answers import answers_of
from crossmodal.train.checkpoint import load_checkpoint, save_checkpoint
from crossmodal.train.config import make_config
from crossmodal.train.evaluation import evaluate_run, open_run
from crossmodal.train.inputs import Inputs
from crossmodal.train.learners import make_learner
from crossmodal.train.model import begin_with, build_model, describe_model, load_model, modalities_of
from crossmodal.train.predict import predict
from crossmodal.train.presets import PRESETS
from crossmodal.train.reading import difference, reading_of
from crossmodal.train.run import MODEL, RunError, resume_run, start_run
from crossmodal.train.state import write_tensors
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


def train_on_images(folder, edge, encoder):
    options = {"image_size": [3, edge, edge]}
    settings = {**SETTINGS, "epochs": 1, "options": options, "modalities": ["image"], "encoders": {"image": encoder}}
    start_run(make_config({**settings, "data": str(make_manifest(folder))}), folder / "run", io.StringIO())
    return folder / "run"


def test_attention_on_an_image_is_drawn_for_vgg16(tmp_path):
    out = train_on_images(tmp_path, 64, {"name": "vgg16", "frozen": True})
    evaluate_run(out)
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_attention_on_an_image_is_drawn_for_a_backbone_whose_tokens_have_no_place(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**size, image_size=8, patch_size=4)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    out = train_on_images(tmp_path, 8, {"name": "huggingface", "model": str(tmp_path / "vit")})
    evaluate_run(out)
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")


def save_vit(folder, **settings):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ViTModel(transformers.ViTConfig(**size, image_size=8, patch_size=4)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, **settings}))
    return folder / "preprocessor_config.json"


def test_run_answers_the_same_and_goes_on_only_alike_where_the_settings_of_its_backbone_vanish(tmp_path):
    settings = save_vit(tmp_path / "vit", image_mean=[0.5, 0.25, 0.125], image_std=[0.5, 0.25, 0.5])
    out = train_on_images(tmp_path, 8, {"name": "huggingface", "model": str(tmp_path / "vit")})

    def answers():
        model, description, _ = open_run(out)
        return list(predict(model, description, Inputs(description).samples([tmp_path / "0.png"])))

    before = answers()
    resume_run(out, io.StringIO())  # nothing is left to do, and the state is that of the same model
    settings.unlink()
    assert answers() == before
    with pytest.raises(RunError, match="or of settings or a pretrained model's files that were changed since"):
        resume_run(out, io.StringIO())


def test_run_from_before_inputs_were_normalised_is_opened_as_it_was_trained(tmp_path):
    save_vit(tmp_path / "vit", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    encoder = {"name": "huggingface", "model": str(tmp_path / "vit"), "normalize": False}
    out = train_on_images(tmp_path, 8, encoder)
    weights, description = load_checkpoint(out / MODEL)
    assert description["encoders"]["image"].pop("normalize") is False  # earlier versions did not say
    write_tensors(out / MODEL, weights, description)
    assert open_run(out)[0].encoders["image"].prepare is None


def test_attention_on_a_sequence_is_drawn_without_its_padding(tmp_path, monkeypatch):
    """Beneath it lies the sample's own sound, from end to end."""
    drawn = []
    monkeypatch.setattr(pictures, "_draw_bars", lambda axes, weights, color: drawn.append(len(weights)))
    lengths = (9, 3, 0)
    samples = [Sample({"text": torch.ones(n, dtype=torch.int64)} if n else {}, torch.tensor(0), "") for n in lengths]
    model = FusionClassifier({"text": TextEncoder(5, 8)}, channels=8, num_classes=2, width=8).eval()
    collate = Collate({"text": Modality("text", vocabulary=5)})
    assert pictures.draw_attention(model, collate, samples, ("a", "b"), tmp_path / "attention.png")
    assert drawn == [9, 3, 1]


def test_evaluation_that_fails_leaves_no_result(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")

    out = train_on_images(tmp_path, 8, {"name": "vit", "patch": 4, "layers": 1})
    monkeypatch.setattr(evaluation, "draw_attention", fail)
    with pytest.raises(OSError, match="no space left"):
        evaluate_run(out)
    assert not (out / "eval.json").exists()


@pytest.mark.parametrize("data", ["avmnist-speaker", "avmnist-hard", "avfind", "avfind-text", "digit-strings"])
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


def test_run_that_read_other_words_is_none_to_begin_with(tmp_path):
    """Its weights would fit."""
    same = {**SETTINGS, "epochs": 1, "data": str(make_manifest(tmp_path))}
    start_run(make_config({**same, "modalities": ["text"]}), tmp_path / "a", io.StringIO())
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(manifest.read_text().replace("is left", "is port"))
    with pytest.raises(ValueError, match=r"read text as this one does: \S*a has 'left' as token \d, not 'port'$"):
        start_run(make_config({**same, "start": {"text": str(tmp_path / "a")}}), tmp_path / "b", io.StringIO())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": {"sample_rate": 8000}}, "8000 Hz, not 16000 Hz"),
        ({"encoders": {"log_mel": {"hop": 80}}}, r"log_mel {.*'hop': 80.*}, not {.*'hop': 160"),
    ],
)
def test_run_that_heard_at_another_rate_or_in_other_frames_is_none_to_begin_with(tmp_path, changes, message):
    """Its weights would fit."""
    trained = {
        "kind": "classifier",
        "task": "classification",
        "classes": ["a", "b"],
        "modalities": {"audio": {"kind": "audio", "size": None, "sample_rate": 16000, "vocabulary": None}},
        "auxiliary": {},
        "encoders": {"audio": {}},
        "positions": {},
        "model": describe_model(make_config({"data": "digits"}), digits())["model"],
        "data": {},
    }
    model = build_model(trained)
    other = {**trained, **{part: {"audio": {**trained[part]["audio"], **more}} for part, more in changes.items()}}
    write_tensors(tmp_path / MODEL, model.state_dict(), other)
    with pytest.raises(ValueError, match=message):
        begin_with(model, trained, {"audio": tmp_path / MODEL})
    # The usual frames, written out, are the same ones.
    same = {**trained, "encoders": {"audio": {"log_mel": {"hop": 160}}}}
    write_tensors(tmp_path / MODEL, model.state_dict(), same)
    assert begin_with(model, trained, {"audio": tmp_path / MODEL})


def begun(tmp_path, singles, **more):
    """A fused model that begins with single models trained for an epoch, those models, and a batch."""
    same = {**SETTINGS, "epochs": 1, "data": str(make_manifest(tmp_path))}
    for name, changes in singles.items():
        start_run(make_config({**same, "modalities": [name], **changes}), tmp_path / name, io.StringIO())
    splits = manifest_splits(tmp_path / "m.jsonl", None, ManifestOptions(image_size=(1, 8, 8)), seed=0)
    description = describe_model(make_config({**same, "experts": "product", **more}), splits)
    model = build_model(description)
    begin_with(model, description, {name: tmp_path / name / MODEL for name in singles})
    collate = Collate(modalities_of(description))
    batch = collate([splits.train[index] for index in range(len(splits.train))])
    return model.eval(), {name: open_run(tmp_path / name)[0] for name in singles}, batch


@pytest.mark.parametrize("fusion", ["queries", "bottleneck", "gated"])
def test_product_of_experts_begins_as_the_sum_of_the_single_models(tmp_path, fusion):
    """Before the first step, with every modality and without each."""
    model, singles, batch = begun(tmp_path, {"image": {}, "text": {"experts": "auxiliary"}}, fusion=fusion)
    sets = torch.tensor([[True, True], [True, False], [False, True]])
    fused = model(batch.inputs, batch.lengths, sets=sets)
    alone = {name: one(batch.inputs, batch.lengths).logits for name, one in singles.items()}
    there = {name: (batch.lengths[name] > 0).unsqueeze(1) for name in alone}
    assert not there["text"].all()
    for name, logits in alone.items():
        torch.testing.assert_close(fused.experts[name], logits)
    for row, kept in zip(fused.logits, sets.tolist(), strict=True):
        chosen = [name for name, keep in zip(model.modalities, kept, strict=True) if keep]
        torch.testing.assert_close(row, sum(alone[name].log_softmax(1) * there[name] for name in chosen))


OTHERS = [{"fusion": "concat"}, {"experts": "product"}, {"num_queries": 1}, {"num_heads": 2}]


@pytest.mark.parametrize("other", OTHERS)
def test_single_models_whose_answer_is_no_expert_s_give_their_encoders_alone(tmp_path, other):
    model, singles, _ = begun(tmp_path, {"image": {}, "text": other})
    assert torch.equal(model.to_common["text"][0].weight, singles["text"].to_common["text"][0].weight)
    assert torch.equal(model.experts["image"].pool.queries, singles["image"].fusion.queries)
    assert model.head[-1].weight.abs().max() > 0


def test_single_model_of_other_classes_gives_its_encoder_alone(tmp_path):
    model, singles, _ = begun(tmp_path, {"image": {"options": {"image_size": [1, 8, 8], "task": "multilabel"}}})
    assert torch.equal(model.to_common["image"][0].weight, singles["image"].to_common["image"][0].weight)
    assert not torch.equal(model.experts["image"].pool.queries, singles["image"].fusion.queries)


def spelling(monkeypatch, root, fusion):
    """Settings of a run on a few sentences."""
    monkeypatch.setattr(digit_strings, "_SIZES", {"train": 16, "validation": 8, "test": 8})
    settings = {**PRESETS["digit-strings"], "epochs": 1, "samples": 16, "batch_size": 16, "fusion": fusion}
    return make_config({**settings, "data": "digit-strings", "root": str(root)})


@pytest.mark.parametrize("fusion", ["transcriber", "captioner"])
def test_model_that_spells_begins_as_one_that_spells_from_sound_alone(root, tmp_path, fusion, monkeypatch):
    """Without the image it says the same; a model of another size gives its encoder alone."""
    config = spelling(monkeypatch, root, fusion)
    start_run(dataclasses.replace(config, modalities=("audio",)), tmp_path, io.StringIO())
    trained = open_run(tmp_path)[0]
    splits = digit_strings.digit_strings(root)
    found = []
    for changes, taken in (({}, "the whole"), ({"layers": 2}, "the encoder"), ({"num_heads": 2}, "the encoder")):
        description = describe_model(dataclasses.replace(config, **changes), splits)
        model = build_model(description, seed=7).eval()
        assert begin_with(model, description, {"audio": tmp_path / MODEL}) == [f"{taken} of {tmp_path}"]
        found.append(model)
    same, larger, _ = found
    collate = Collate(modalities_of(description))
    batch = collate([splits.test[index] for index in range(8)]).without("image")
    with torch.no_grad():
        said = [model(batch.inputs, batch.lengths, batch.labels).logits for model in (trained, same, larger)]
    torch.testing.assert_close(said[0], said[1])
    assert not torch.allclose(said[0], said[2], atol=1e-3)
    assert torch.equal(larger.to_common["audio"][0].weight, trained.to_common["audio"][0].weight)


def test_two_that_spell_give_their_encoders_and_one_beside_another_is_taken_whole(root, tmp_path, monkeypatch):
    config = spelling(monkeypatch, root, "captioner")
    single = {"audio": tmp_path / "audio" / MODEL, "image": tmp_path / "image" / MODEL}
    for name in single:
        start_run(dataclasses.replace(config, modalities=(name,)), tmp_path / name, io.StringIO())
    splits = digit_strings.digit_strings(root)
    for fusion in ("captioner", "transcriber"):
        description = describe_model(dataclasses.replace(config, fusion=fusion), splits)
        said = begin_with(build_model(description), description, single)
        assert said == [f"the encoder of {tmp_path / name}" for name in single]
    transcriber = dataclasses.replace(config, fusion="transcriber", modalities=("audio",))
    start_run(transcriber, tmp_path / "spells", io.StringIO())
    said = begin_with(build_model(description), description, {**single, "audio": tmp_path / "spells" / MODEL})
    assert said == [f"the whole of {tmp_path / 'spells'}", f"the encoder of {tmp_path / 'image'}"]


def test_run_of_another_version_is_refused(tmp_path):
    start_run(make_config({**SETTINGS, "epochs": 1, "data": str(make_manifest(tmp_path))}), tmp_path, io.StringIO())
    weights, description = load_checkpoint(tmp_path / MODEL)
    weights["head.renamed"] = weights.pop("head.1.weight")
    write_tensors(tmp_path / MODEL, weights, description)
    with pytest.raises(ValueError, match="holds weights of another version of crossmodal"):
        open_run(tmp_path)


def test_frozen_encoders_stay_as_they_were_and_the_rest_learns(tmp_path):
    same = {**SETTINGS, "epochs": 1, "ema": 0.0, "learning_rate": 0.01, "data": str(make_manifest(tmp_path))}
    start_run(make_config({**same, "modalities": ["text"]}), tmp_path / "a", io.StringIO())
    frozen = {**same, "start": {"text": str(tmp_path / "a")}, "frozen": True}
    start_run(make_config(frozen), tmp_path / "b", io.StringIO())
    first, second = (open_run(tmp_path / name)[0].state_dict() for name in "ab")
    kept = [name for name in first if name.startswith("encoders.text.")]
    assert kept and all(torch.equal(first[name], second[name]) for name in kept)
    moved = [name for name in first if name.startswith("to_common.text.") and name.endswith("weight")]
    assert moved and not any(torch.equal(first[name], second[name]) for name in moved)


def test_run_whose_images_were_read_otherwise_is_none_to_begin_with():
    """What is from before normalising was settled has none."""
    size = {"kind": "image", "size": [3, 16, 16], "sample_rate": None, "vocabulary": None}
    options = {"name": "huggingface", "model": "vit"}
    old, new = (
        {"modalities": {"image": size}, "encoders": {"image": one}, "data": {}}
        for one in (options, {**options, "normalize": {"mean": [0.5], "deviation": [0.5]}})
    )
    assert difference(reading_of(old, "image"), reading_of(new, "image")).startswith("normalize False, not {")
    assert not difference(reading_of(new, "image"), reading_of(new, "image"))


def test_run_that_left_out_other_words_is_none_to_begin_with():
    def reading(stop_words):
        reader = Reader(["text"], ReaderOptions(stop_words=stop_words))
        reader.learn_tokens(["it is left", "it is right"])
        description = {"encoders": {}, "data": {"reader": reader.as_dict()}}
        return reading_of({**description, "modalities": {"text": asdict(reader.modalities["text"])}}, "text")

    whole, without = reading(()), {**reading(()), "stop_words": ["is"]}
    assert difference(whole, without) == "stop_words [], not ['is']" and reading(("is",))["stop_words"] == ["is"]


def test_checkpoint_of_something_else_is_none_to_begin_with(tmp_path):
    save_checkpoint(tmp_path / MODEL, torch.nn.Linear(2, 2), {"of": "mine"})
    with pytest.raises(ValueError, match=r"holds no model of `crossmodal train`"):
        begin_with(torch.nn.Linear(2, 2), {}, {"image": tmp_path / MODEL})


def test_more_than_one_modality_spoiled_is_no_matter_where_nothing_is_learnt(tmp_path):
    """A run of an earlier version may have been trained so."""
    config = make_config({**SETTINGS, "epochs": 1, "data": str(make_manifest(tmp_path))})
    start_run(config, tmp_path / "run", io.StringIO())
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("spoiled: 0.0", "spoiled: 0.6"))
    assert "spoiled: 0.6" in path.read_text() and evaluate_run(tmp_path / "run")["samples"]


def test_vit_of_before_its_patch_went_by_the_size_has_the_patch_of_then(tmp_path):
    config = make_config({"data": "digits", "modalities": ["image"], "encoders": {"image": {"name": "vit"}}})
    splits = digits()
    description = describe_model(config, splits)
    assert description["encoders"]["image"]["patch"] == 2  # settled, whatever the usual one becomes
    description["modalities"]["image"]["size"] = (1, 56, 56)
    description["encoders"]["image"]["patch"] = 7
    model = build_model(description)
    del description["encoders"]["image"]["patch"]
    write_tensors(tmp_path / MODEL, model.state_dict(), description)
    assert load_model(tmp_path / MODEL)[0].encoders["image"].grid == (8, 8)
