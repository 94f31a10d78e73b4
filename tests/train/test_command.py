"""The commands train, eval, predict and search, on a small manifest."""

import json
import types

import pytest

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tensorboard", reason="needs the extra train")
pytest.importorskip("sklearn", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")
yaml = pytest.importorskip("yaml", reason="needs the extra train")

from safetensors.torch import load_file  # noqa: E402

from crossmodal import cli  # noqa: E402
from crossmodal.data import manifest  # noqa: E402
from crossmodal.data.espeak import EspeakError  # noqa: E402
from crossmodal.data.sample import Modality  # noqa: E402
from crossmodal.train.checkpoint import load_checkpoint  # noqa: E402
from crossmodal.train.evaluation import open_run  # noqa: E402
from crossmodal.train.pictures import draw_confusion  # noqa: E402
from crossmodal.train.presets import PRESETS  # noqa: E402
from crossmodal.train.search import search  # noqa: E402
from crossmodal.train.state import write_tensors  # noqa: E402
from tests.train.runs import make_manifest, start, write_settings  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    make_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    settings = write_settings(folder, learning_rate=0.01, epochs=12, dropout=0.0)
    out = folder / "run"
    assert cli.main(["train", "--data", str(folder / "m.jsonl"), "--config", str(settings), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def towers(folder):
    settings = write_settings(folder, learning_rate=0.01, epochs=12, dropout=0.0, fusion="two_tower")
    out = folder / "towers"
    arguments = ["train", "--data", str(folder / "m.jsonl"), "--config", str(settings), "--modalities", "image,text"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    return out


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_metrics_have_the_agreed_form(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0.9 <= metrics["val"]["accuracy"] <= 1 and 0.9 <= metrics["test"]["accuracy"] <= 1
    assert set(metrics["test"]["missing"]) == {"image", "text"}
    assert [row["epoch"] for row in metrics["history"]] == list(range(1, 13))
    assert all(0 <= row["data_share"] <= 1 for row in metrics["history"])


def test_weights_settings_and_logs_are_left(trained):
    assert all(weight.isfinite().all() for weight in load_file(trained / "model.safetensors").values())
    assert yaml.safe_load((trained / "config.yaml").read_text())["learning_rate"] == 0.01
    assert len((trained / "log.csv").read_text().splitlines()) == 13
    assert list((trained / "tensorboard").iterdir())


def test_eval_finds_what_training_found(trained, capsys):
    assert cli.main(["eval", str(trained), "--json"]) == 0
    (found,) = lines(capsys)
    wanted = json.loads((trained / "metrics.json").read_text())["test"]
    assert {name: found[name] for name in wanted} == wanted
    assert (trained / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_eval_prints_every_class(trained, capsys):
    assert cli.main(["eval", str(trained), "--split", "validation"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("validation, 12 samples: accuracy")
    assert "accuracy" in printed and "left" in printed and "right" in printed and "without image" in printed


def rows_of(folder):
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


def write(folder, name, rows):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folder / name)


def evaluated(trained, manifest, capsys):
    assert cli.main(["eval", str(trained), "--data", manifest, "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_eval_of_other_texts_reads_them_as_the_run_does(trained, folder, capsys):
    """Words are numbered by how frequent they are: a tokenizer of the other texts would take one for another."""
    rows = [{**row, "image": "", "split": "test"} for row in rows_of(folder) if row["text"]]
    others = [{"text": "a right word that nobody has learnt", "label": "left", "split": "train"}] * 50
    found, _ = evaluated(trained, write(folder, "other.jsonl", rows + others), capsys)
    assert found["samples"] == len(rows) and found["accuracy"] > 0.9 and found["skipped"] == []


def test_eval_needs_no_other_split_and_not_every_class(trained, folder, capsys):
    rows = [{**row, "split": "test"} for row in rows_of(folder) if row["label"] == "left"]
    found, _ = evaluated(trained, write(folder, "left.jsonl", rows), capsys)
    assert found["samples"] == len(rows) and found["accuracy"] > 0.9
    assert (found["classes"]["left"]["support"], found["classes"]["right"]["support"]) == (len(rows), 0)


def test_eval_names_what_it_cannot_read(trained, folder, capsys):
    rows = [{**row, "split": "test"} for row in rows_of(folder)[:4]]
    rows[0]["image"] = "gone.png"
    rows[1] = {"audio": "a.wav", "label": "left", "split": "test"}
    rows[2] = {**rows[2], "split": "train", "image": "gone too.png"}
    found, errors = evaluated(trained, write(folder, "gaps.jsonl", rows), capsys)
    assert found["samples"] == 1 and len(found["skipped"]) == 2
    assert "gone.png" in errors and "row 2 has nothing of the modalities image, text" in errors
    assert "gone too.png" not in errors


def test_eval_of_labels_that_the_run_does_not_know_is_an_error(trained, folder, capsys):
    rows = [{**row, "split": "test"} for row in rows_of(folder)[:4]]
    rows[3]["label"] = "up"
    assert cli.main(["eval", str(trained), "--data", write(folder, "up.jsonl", rows)]) == 1
    assert "row 4 has the label 'up', which is none of left, right" in capsys.readouterr().err


def test_eval_of_a_manifest_without_splits_is_of_all_rows_beside_it(trained, folder, tmp_path, capsys):
    """Of other data nothing was learnt from: there is nothing to keep back."""
    rows = [{name: cell for name, cell in row.items() if name != "split"} for row in rows_of(folder)[:10]]
    for row in rows:
        (tmp_path / row["image"]).write_bytes((folder / row["image"]).read_bytes())
    found, _ = evaluated(trained, write(tmp_path, "new.jsonl", rows), capsys)
    assert (found["split"], found["samples"]) == ("all", 10)
    found, _ = evaluated(trained, write(tmp_path, "one.jsonl", [{**rows[0], "split": "test"}, *rows[1:]]), capsys)
    assert found["split"] == "test" and found["samples"] < 10
    assert cli.main(["eval", str(trained), "--split", "all", "--json"]) == 0
    assert lines(capsys)[0]["samples"] == len(rows_of(folder))


@pytest.mark.parametrize("known", [True, False], ids=["", "run without a digest"])
def test_eval_of_the_run_s_own_manifest_is_of_the_rows_that_it_did_not_learn_from(
    folder, tmp_path, capsys, monkeypatch, known
):
    """Also where no row names a split, and of a copy."""
    rows = [{name: cell for name, cell in row.items() if name != "split"} for row in rows_of(folder)]
    whole, out = write(folder, "whole.jsonl", rows), str(tmp_path / "run")
    settings = write_settings(tmp_path, epochs=1)
    assert cli.main(["train", "--data", whole, "--config", str(settings), "--out", out]) == 0
    if not known:
        weights, description = load_checkpoint(tmp_path / "run/model.safetensors")
        del description["data"]["digest"]
        write_tensors(tmp_path / "run/model.safetensors", weights, description)
    capsys.readouterr()
    monkeypatch.chdir(folder)
    found, _ = evaluated(out, "whole.jsonl", capsys)
    assert (found["split"], found["samples"]) == ("test", 6)
    copy = write(tmp_path, "copy.jsonl", rows)
    assert cli.main(["eval", out, "--data", copy, "--root", str(folder), "--json"]) == 0
    found = lines(capsys)[0]
    assert (found["split"], found["samples"]) == (("test", 6) if known else ("all", 60))


def test_eval_of_the_run_s_own_manifest_finds_its_files_where_the_run_did(folder, tmp_path, capsys):
    apart, out = tmp_path / "apart", str(tmp_path / "run")
    apart.mkdir()
    own = write(apart, "own.jsonl", rows_of(folder))
    settings = write_settings(tmp_path, epochs=1)
    assert cli.main(["train", "--data", own, "--root", str(folder), "--config", str(settings), "--out", out]) == 0
    capsys.readouterr()
    assert cli.main(["eval", out, "--data", own, "--json"]) == 0
    assert lines(capsys)[0]["skipped"] == []


def test_eval_looks_at_no_row_of_other_splits(trained, folder, capsys):
    rows = [{**row, "split": "test"} for row in rows_of(folder)[:4]]
    rows += [{**rows[0], "label": "up", "split": "train"}]
    found, _ = evaluated(trained, write(folder, "others.jsonl", rows), capsys)
    assert found["samples"] == 4 and found["skipped"] == []


def test_eval_reads_a_manifest_once(trained, folder, capsys, monkeypatch):
    read = []
    table = manifest.read_table
    monkeypatch.setattr(manifest, "read_table", lambda path: read.append(path) or table(path))
    evaluated(trained, str(folder / "m.jsonl"), capsys)
    assert len(read) == 1


def test_eval_of_data_without_the_modalities_of_the_run_names_them(trained, capsys, monkeypatch):
    sound = Modality("audio", sample_rate=8000)
    dataset = types.SimpleNamespace(modalities={"image": Modality("image", size=(1, 8, 8)), "audio": sound})
    monkeypatch.setattr("crossmodal.data.open.digits", lambda seed: types.SimpleNamespace(test=dataset))
    assert cli.main(["eval", str(trained), "--data", "digits"]) == 1
    wanted = "data must have the modalities of the run, image, text; digits has image, audio, no text"
    assert capsys.readouterr().err == f"crossmodal eval: {wanted}\n"


def test_classes_may_be_named_with_signs_of_formulas(tmp_path):
    assert draw_confusion([[1, 0], [0, 1]], ("$_$", "a $x^$"), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_prediction_does_not_ask_what_split_a_row_is_of(trained, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("text,split\nit is left,dev\n")
    assert cli.main(["predict", str(trained), str(tmp_path / "t.csv")]) == 0
    assert len(lines(capsys)) == 1


def test_prediction_of_half_a_character_is_named_and_skipped(trained, tmp_path, capsys):
    (tmp_path / "T.JSONL").write_text('{"text": "it is \\ud83d"}\n{"text": "it is \\ud83d\\ude00"}\n')
    assert cli.main(["predict", str(trained), str(tmp_path / "T.JSONL")]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 and r"row 1 has half a character, \ud83d, in text" in printed.err


def test_eval_of_other_data_looks_for_files_beside_them(folder, tmp_path, capsys):
    """Not where those of the run were; --root says otherwise."""
    data = ["--data", str(folder / "m.jsonl"), "--root", str(folder)]
    settings = write_settings(tmp_path, epochs=1)
    assert cli.main(["train", *data, "--config", str(settings), "--out", str(tmp_path / "run")]) == 0
    other = write(tmp_path, "other.jsonl", [{"image": "mine.png", "label": "left"}])
    (tmp_path / "mine.png").write_bytes((folder / "0.png").read_bytes())
    capsys.readouterr()
    assert evaluated(tmp_path / "run", other, capsys)[0]["samples"] == 1
    assert cli.main(["eval", str(tmp_path / "run"), "--data", other, "--root", str(folder)]) == 1
    assert "mine.png: no such file" in capsys.readouterr().err


def test_two_towers_are_examined_on_labels_that_they_do_not_know(towers, folder, capsys):
    rows = [{**row, "label": f"new {row['label']}"} for row in rows_of(folder) if row["text"]]
    found, _ = evaluated(towers, write(folder, "new.jsonl", [{**row, "split": "test"} for row in rows]), capsys)
    assert found["samples"] == len(rows) and found["accuracy"] > 0.9


def test_files_of_modalities_that_are_not_asked_for_are_not_read(folder, tmp_path, capsys):
    rows = [{**row, "audio": "there is none.wav"} for row in rows_of(folder)]
    manifest = write(folder, "silent.jsonl", rows)
    settings = write_settings(tmp_path, epochs=1)
    arguments = ["train", "--data", manifest, "--config", str(settings), "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--modalities", "image,text"]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["skipped"] == 0
    assert cli.main(arguments) == 1
    assert "there is none.wav" in capsys.readouterr().err


def test_entries_of_settings_add_up(monkeypatch, tmp_path):
    """From the preset, the file and each flag; null takes one away."""
    made = []
    monkeypatch.setattr("crossmodal.train.run.start_run", lambda config, out: made.append(config))
    (tmp_path / "s.yaml").write_text("encoders: {text: gru}\noptions: {flip: true}\nstart: {image: a, audio: b}\n")
    arguments = ["train", "--data", "avmnist", "--config", str(tmp_path / "s.yaml"), "--out", str(tmp_path)]
    flags = [
        "encoders={image: vit}",
        "options={task: regression}",
        "options={sample_rate: 8000}",
        "start={audio: null}",
    ]
    assert cli.main([*arguments, *(part for flag in flags for part in ("--set", flag))]) == 0
    (config,) = made
    assert config.encoders == {**PRESETS["avmnist"]["encoders"], "image": {"name": "vit"}, "text": {"name": "gru"}}
    assert config.options == {"flip": True, "task": "regression", "sample_rate": 8000}
    assert config.start == {"image": "a"}
    assert PRESETS["avmnist"]["encoders"].keys() == {"image", "audio"}  # it is not what was added to


def test_speech_that_cannot_be_made_is_one_line(monkeypatch, tmp_path, capsys):
    def fail(*arguments, **options):
        raise EspeakError("eSpeak does not start")

    monkeypatch.setattr("crossmodal.train.run.open_data", fail)
    assert cli.main(["train", "--data", "digits", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "crossmodal train: eSpeak does not start\n"


def test_rows_without_what_is_learnt_from_are_skipped(folder, tmp_path, capsys):
    rows = rows_of(folder)
    settings = write_settings(tmp_path, epochs=1)
    arguments = ["train", "--data", str(folder / "m.jsonl"), "--config", str(settings), "--modalities", "text"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "skipped: row 1 has nothing of the modalities text" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["skipped"] == sum(not row["text"] for row in rows)
    assert metrics["test"]["samples"] == sum(bool(row["text"]) for row in rows if row["split"] == "test")


def test_prediction_names_a_row_that_cannot_be_read(trained, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("text,label\nit is left,left\nit is left, or so,left\n")
    assert cli.main(["predict", str(trained), str(tmp_path / "t.csv")]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 and "t.csv row 2 has 3 cells, 2 columns" in printed.err


def test_prediction_of_files_has_scores_mass_and_links(trained, folder, capsys):
    assert cli.main(["predict", str(trained), str(folder / "0.png")]) == 0
    (row,) = lines(capsys)
    assert row["answer"] in ("left", "right") and sum(row["scores"].values()) == pytest.approx(1)
    assert row["mass"] == pytest.approx({"image": 1.0, "text": 0.0})
    assert len(row["links"]) == 3 and {"row", "column"} <= row["links"][0].keys()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_as_many_links_are_told_as_were_asked_for(trained, folder, capsys, count):
    """The row has 4 patches and 4 words."""
    rows = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
    (folder / "both.jsonl").write_text(json.dumps(next(row for row in rows if row["text"])))
    assert cli.main(["predict", str(trained), str(folder / "both.jsonl"), "--links", str(count)]) == 0
    (row,) = lines(capsys)
    weights = [link["weight"] for link in row["links"]]
    assert len(weights) == count and weights == sorted(weights, reverse=True)


def test_files_together_are_one_sample(trained, folder, capsys):
    (folder / "words.txt").write_text("it is left 0")
    assert cli.main(["predict", str(trained), "--together", str(folder / "0.png"), str(folder / "words.txt")]) == 0
    (row,) = lines(capsys)
    assert row["mass"]["text"] > 0 and row["mass"]["image"] > 0


def test_prediction_of_a_manifest_is_right(trained, folder, capsys):
    assert cli.main(["predict", str(trained), str(folder / "m.jsonl")]) == 0
    rows = lines(capsys)
    truth = [json.loads(line)["label"] for line in (folder / "m.jsonl").read_text().splitlines()]
    assert sum(row["answer"] == label for row, label in zip(rows, truth, strict=True)) > 0.9 * len(truth)


def test_manifest_of_the_current_folder_is_predicted_the_same(trained, folder, capsys, monkeypatch):
    assert cli.main(["predict", str(trained), str(folder / "m.jsonl")]) == 0
    wanted = lines(capsys)
    monkeypatch.chdir(folder)
    assert cli.main(["predict", str(trained), "m.jsonl"]) == 0
    assert [row["scores"] for row in lines(capsys)] == [row["scores"] for row in wanted]


def test_two_files_of_a_kind_are_no_sample(trained, folder, capsys):
    files = [str(folder / "0.png"), str(folder / "1.png")]
    assert cli.main(["predict", str(trained), "--together", *files]) == 1
    assert "files of one sample must differ in kind" in capsys.readouterr().err


def test_broken_file_is_named_and_skipped_or_ends_it(trained, folder, capsys):
    (folder / "broken.png").write_bytes(b"?")
    files = [str(folder / "0.png"), str(folder / "broken.png")]
    assert cli.main(["predict", str(trained), *files]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 and "broken.png" in printed.err and "1 skipped" in printed.err
    assert cli.main(["predict", str(trained), "--strict", *files]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_shares_add_up_to_one_whatever_is_missing(folder, tmp_path, capsys):
    """Also of a form where the tokens of each modality ask."""
    settings, out = write_settings(tmp_path, fusion="cross", epochs=1), tmp_path / "run"
    assert cli.main(["train", "--data", str(folder / "m.jsonl"), "--config", str(settings), "--out", str(out)]) == 0
    rows = [{"image": "0.png", "text": "it is left"}, {"image": "0.png", "text": ""}]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    assert cli.main(["predict", str(out), str(folder / "asked.jsonl"), "--links", "99"]) == 0
    both, alone = lines(capsys)
    assert sum(both["mass"].values()) == pytest.approx(1) == sum(link["weight"] for link in both["links"])
    assert sum(alone["mass"].values()) == 0 and not alone["links"]  # the image has nobody to ask


def test_search_ranks_images_by_text(towers, folder, capsys):
    (folder / "left.txt").write_text("it is left 1")
    among = str(folder / "m.jsonl")
    arguments = ["search", str(towers), str(folder / "left.txt"), "--among", among, "--modality", "image"]
    assert cli.main([*arguments, "--count", "8"]) == 0
    (row,) = lines(capsys)
    labels = [json.loads(line)["label"] for line in (folder / "m.jsonl").read_text().splitlines()]
    found = [labels[int(one["name"].rsplit(" ", 1)[1]) - 1] for one in row["found"]]
    assert row["by"] == "text" and found.count("left") >= 7
    cosines = [one["cosine"] for one in row["found"]]
    assert cosines == sorted(cosines, reverse=True)


def test_search_says_at_once_what_it_cannot_do(trained, towers):
    model, description, _ = open_run(trained)
    with pytest.raises(ValueError, match="search needs a model of two towers"):
        search(model, description, (), (), "image")
    model, description, _ = open_run(towers)
    with pytest.raises(ValueError, match="modality must be one of image, text, got 'smell'"):
        search(model, description, (), (), "smell")


def test_search_needs_two_towers(trained, folder, capsys):
    arguments = ["search", str(trained), str(folder / "0.png"), "--among", str(folder / "m.jsonl")]
    assert cli.main([*arguments, "--modality", "text"]) == 1
    assert "two_tower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "none.csv", "--out", "{out}"], "none.csv: no such manifest in /"),
        (["train", "--data", "avmnist", "--out", "{out}"], "root must be the folder"),
        (["train", "--data", "digits", "--out", "{out}", "--set", "widht=3"], "unknown setting widht"),
        (["train", "--data", "digits", "--out", "{out}", "--set", "width=wide"], "width must be int, got 'wide'"),
        (["train", "--data", "digits", "--out", "{out}", "--set", "ema=2"], r"ema must be in [0, 1), got 2"),
        (["train", "--data", "digits", "--out", "{out}", "--samples", "-5"], "samples must be 1 or more"),
        (["train", "--data", "digits", "--out", "{out}", "--workers", "-1"], "workers must be 0 or more, got -1"),
        (["train", "--data", "digits", "--out", "{out}", "--threads", "0"], "threads must be 1 or more, got 0"),
        (["train", "--data", "digits", "--out", "{out}", "--set", "max_gradient=nan"], "max_gradient must be a number"),
        (
            ["train", "--data", "{out}.csv", "--out", "{out}", "--set", "options={{on: 1}}"],
            "options must be among image_size, ",
        ),
        (["train", "--out", "{out}"], "data must name a data set"),
        (["train", "--resume", "{out}"], "holds no run"),
        (["eval", "{out}"], "holds no run"),
        (["predict", "{out}", "x.png"], "holds no run"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistake_ends_with_one_line_and_status_1(tmp_path, capsys, arguments, message):
    out = tmp_path / "run"
    assert cli.main([one.format(out=out) for one in arguments]) == 1
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "digits"],
        ["train", "--resume", "x", "--epochs", "3"],
        ["search", "x", "y"],
        ["search", "x", "y", "--among", "z", "--modality", "image", "--count", "0"],
        ["predict", "x", "y", "--links", "-1"],
    ],
)
def test_wrong_usage_ends_with_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_settings_in_a_file_add_to_what_is_usual_for_the_data(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr("crossmodal.train.run.start_run", lambda config, out: begun.append(config))
    settings = tmp_path / "settings.yaml"
    settings.write_text("epochs: 1\n")
    arguments = ["train", "--data", "avfind", "--config", str(settings), "--samples", "64", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (config,) = begun
    assert (config.epochs, config.samples, config.fusion, config.likeness) == (1, 64, "cross", 4.0)


def test_settings_that_a_run_kept_repeat_it_without_what_was_taken_away(tmp_path, monkeypatch):
    """The preset, which has that entry, has nothing to say beside a file that names every setting."""
    made = []
    monkeypatch.setattr("crossmodal.train.run.start_run", lambda config, out: made.append(config))
    arguments = ["train", "--data", "digit-strings", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--set", "positions={audio: null}", "--set", "encoders={image: null}"]) == 0
    (tmp_path / "config.yaml").write_text(made[0].as_yaml())
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path)]) == 0
    assert made[0].positions == {} and made[1] == made[0]


def test_reader_that_has_read_enough_is_no_error(trained, folder, capfd):
    files = [str(folder / f"{row}.png") for row in range(20)] * 100
    process = start("predict", trained, *files)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=180) == 0 and process.stderr.read() == ""


def test_unknown_modality_is_refused_with_the_known_ones(folder, tmp_path, capsys):
    arguments = ["train", "--data", str(folder / "m.jsonl"), "--out", str(tmp_path), "--modalities", "image,smell"]
    assert cli.main(arguments) == 1
    assert "modalities must be among image, text, got smell" in capsys.readouterr().err
