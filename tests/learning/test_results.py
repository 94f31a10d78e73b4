"""Results: what the file has is not made again, tables are its means, measures are what they say."""

import io
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("soundfile", reason="needs the extra train")

from crossmodal import reference
from crossmodal.data.av_find import CELL, GRID
from crossmodal.data.av_mnist import av_mnist
from crossmodal.data.open import open_data
from crossmodal.encoders import bidirectional, gru_steps
from crossmodal.learning import run, speed
from crossmodal.learning.cases import QUALITY, SUM, TASKS, Case, all_cases, config_of, singles_of
from crossmodal.learning.measures import cells_of_tokens, mass_by_snr, pointing
from crossmodal.learning.pictures import draw_mass
from crossmodal.learning.results import add_row, is_there, read_results
from crossmodal.learning.table import speed_table, tables
from crossmodal.train.model import build_model, describe_model
from tests.data.recorded import make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("recorded"))


def test_every_case_has_settings_of_its_own():
    cases = list(all_cases(2))
    assert len(set(cases)) == len(cases) == 2 * sum(len(forms) for _, forms in TASKS.values())
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        config = config_of(case, "here", Path("runs"))
        assert config.seed == case.seed and config.data == TASKS[case.task][0]


def test_single_models_come_before_what_begins_with_them():
    cases = list(all_cases(2))
    continued = [case for case in cases if singles_of(case)]
    assert {case.task for case in continued} == {"hard", "clean", "retrieval", "speaker", "sentences"}
    assert all(case in continued for case in cases if case.form == SUM)
    for case in continued:
        assert all(cases.index(single) < cases.index(case) for single in singles_of(case).values())
        start = config_of(case, "here", Path("runs")).start
        assert start == {modality: f"runs/{single.name}" for modality, single in singles_of(case).items()}


@pytest.mark.parametrize(
    "case",
    [
        Case("hard", "queries", 0),
        Case("hard", "concat", 0),
        Case("speaker", "queries", 0),
        Case("clean", "gated", 0),
        Case("retrieval", "InfoNCE + critic", 0),
        Case("sentences", "decoder, speech and image", 0),
    ],
    ids=lambda case: case.name,
)
def test_models_have_the_encoders_of_the_single_models_they_begin_with(case, root):
    """What differs, hides less or more of the input in training, and has no weights."""
    splits = open_data(TASKS[case.task][0], root)
    fused = build_model(describe_model(config_of(case, str(root), Path("runs")), splits))
    assert singles_of(case)
    for modality, single in singles_of(case).items():
        alone = build_model(describe_model(config_of(single, str(root), Path("runs")), splits))
        for part in ("encoders", "to_common"):
            mine, theirs = (getattr(model, part)[modality].state_dict() for model in (fused, alone))
            assert {name: value.shape for name, value in mine.items()} == {n: v.shape for n, v in theirs.items()}
        if case.task in ("hard", "speaker"):
            shapes = [tuple(value.shape) for value in fused.experts[modality].state_dict().values()]
            assert sorted(shapes) == sorted(
                tuple(value.shape) for part in (alone.fusion, alone.head) for value in part.state_dict().values()
            )


def test_unknown_form_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"form must be among .*audio.*, got sum$"):
        list(all_cases(1, ["speaker"], ["image", "sum"]))


def test_single_models_that_are_missing_are_trained_whatever_the_file_holds(root, tmp_path):
    """The file may come from elsewhere, without its runs."""
    case, changes = Case("hard", "queries", 0), {"epochs": 1, "samples": 64, "batch_size": 64}
    add_row(tmp_path / "r.json", case._replace(form="image"), {"test": {"accuracy": 0.25}}, threads=1)
    arguments = {"changes": changes, "stream": io.StringIO()}
    run.make_results([case], root, tmp_path / "r.json", tmp_path / "runs", **arguments)
    rows = read_results(tmp_path / "r.json")["rows"]
    assert [row["form"] for row in rows] == ["image", "audio", "queries"] and rows[0]["test"] == {"accuracy": 0.25}
    # And a run that is over is measured for another file, not trained once more.
    run.make_results([case], root, tmp_path / "other.json", tmp_path / "runs", **arguments)
    (row,) = read_results(tmp_path / "other.json")["rows"]
    assert (row["test"], row["seconds"]) == (rows[2]["test"], rows[2]["seconds"])


@pytest.mark.parametrize("form", ["image", "queries", SUM])
def test_run_of_other_settings_is_not_taken_for_the_case_s(root, tmp_path, form):
    """Its own, or one that it begins with or sums: a trial of fewer epochs, or of another version."""
    case, runs = Case("hard", "image", 0), tmp_path / "runs"
    other = {**config_of(case, "elsewhere", runs).as_dict(), "epochs": 1, "gone": 2}
    out = runs / case.name
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(json.dumps(other))  # YAML too
    (out / "metrics.json").write_text(json.dumps({"config": other}))
    arguments = ([case._replace(form=form)], root, tmp_path / "r.json", runs)
    for _ in range(2):  # over, and only begun
        with pytest.raises(ValueError, match=r"hard-image-0 holds a run of other settings than .*: epochs, gone; move"):
            run.make_results(*arguments, stream=io.StringIO())
        (out / "metrics.json").unlink(missing_ok=True)
    assert not (tmp_path / "r.json").exists()


def test_what_the_file_has_is_not_made_again(root, tmp_path, monkeypatch):
    made = []

    def fake(case, *rest):
        made.append(case)
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"test": {"accuracy": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(run, "_trained", fake)
    cases = list(all_cases(4, ["hard"], ["image", "audio"]))
    arguments = (cases, root, tmp_path / "r.json", tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run.make_results(*arguments, stream=io.StringIO())
    assert len(read_results(tmp_path / "r.json")["rows"]) == 2
    run.make_results(*arguments, stream=io.StringIO())
    assert made == [*cases[:3], *cases[2:]] and len(cases) == 8
    assert all(is_there(read_results(tmp_path / "r.json"), case) for case in cases)


def test_case_is_trained_measured_and_summed(root, tmp_path):
    """One step each: everything runs, nothing is learnt."""
    changes = {"epochs": 1, "samples": 64, "batch_size": 64}
    cases = list(all_cases(1, ["hard"], ["image", "audio", SUM, "queries"]))
    run.make_results(cases, root, tmp_path / "r.json", tmp_path / "runs", changes=changes, stream=io.StringIO())
    rows = read_results(tmp_path / "r.json")["rows"]
    assert [row["form"] for row in rows] == ["image", "audio", SUM, "queries"]
    assert all(0 <= row["test"]["accuracy"] <= 1 and row["machine"]["cpu"] for row in rows)
    assert not list((tmp_path / "runs").rglob("state.safetensors"))
    assert rows[3]["config"]["start"] == {"image": "hard-image-0", "audio": "hard-audio-0"}
    assert str(tmp_path) not in json.dumps(rows) and str(root) not in json.dumps(rows)


def test_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"format": "crossmodal bench 1"}))
    with pytest.raises(ValueError, match="holds no results of `crossmodal results`"):
        read_results(tmp_path / "r.json")


def test_table_shows_means_and_half_ranges(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6)):
        values = {"test": {"accuracy": accuracy, "missing": {"image": 0.25}}}
        add_row(tmp_path / "r.json", Case("hard", "queries", seed), values, threads=1)
    text = tables(read_results(tmp_path / "r.json")["rows"])
    assert "| queries | 0.5500 (0.0500) | 0.2500 (0.0000) |  | 2 |" in text
    assert "\n\n| AV-MNIST, hard | test accuracy |" in text and tables([]) == ""


def test_speed_has_a_row_per_form_where_it_was_measured():
    assert speed_table([]) == ""
    row = {
        "task": "speed",
        "form": "cross",
        "milliseconds": {"fused": 100.0, "reference": 160.0, "operators": 150.0},
        "speedup": 1.6,
        "operator_speedup": 1.49,
        "attention_share": 0.1,
        "encoder_share": 0.7,
        "data_milliseconds": 25.0,
        "machine": {"cpu": "X", "isa": "avx2", "threads": 1},
    }
    lines = speed_table([row, {**row, "form": "queries"}]).splitlines()
    assert "X, avx2, 1 thread" in lines[0]
    assert lines[2] == "| cross | 100 ms | 160 ms, 1.60x as long | 150 ms, 1.49x as long | 10% | 70% | 20% |"
    assert lines[3].startswith("| queries |")


def test_steps_are_timed_fused_in_plain_torch_and_with_operators_alone(root, monkeypatch):
    seen = []
    read = gru_steps.read_both_ways
    monkeypatch.setattr(bidirectional, "read_both_ways", lambda *arguments: seen.append("steps") or read(*arguments))
    fuse = reference.fuse
    monkeypatch.setattr(reference, "fuse", lambda *given, **more: seen.append("plain") or fuse(*given, **more))
    found, steps = set(), speed.use_implementation

    def used(model, implementation):
        steps(model, implementation)
        found.add(frozenset(seen))
        seen.clear()

    monkeypatch.setattr(speed, "use_implementation", used)
    row = speed.time_steps(Case("hard", "source", 0), root, rounds=1)
    assert found - {frozenset()} == {frozenset(each) for each in (["steps"], ["plain"], ["steps", "plain"])}
    assert set(row["milliseconds"]) == {"fused", "reference", "operators"} and min(row["milliseconds"].values()) > 0
    milliseconds = row["milliseconds"]
    assert row["speedup"] == pytest.approx(milliseconds["reference"] / milliseconds["fused"])
    assert row["operator_speedup"] == pytest.approx(milliseconds["operators"] / milliseconds["fused"])
    assert 0 < row["attention_share"] < 1 and row["data_milliseconds"] > 0


def test_mass_against_noise_is_the_mean_over_the_seeds(tmp_path):
    for seed, share in enumerate((0.5, 0.7)):
        values = {"test": {"accuracy": 0.9}, "mass_by_snr": {"-40": 0.1, "20": share, "5": 0.4}}
        add_row(tmp_path / "r.json", Case("hard", QUALITY, seed), values, threads=1)
    text = tables(read_results(tmp_path / "r.json")["rows"])
    assert "| speech over noise, dB | 20 | 5 | -40 |" in text.replace("AV-MNIST, hard: ", "")
    assert "| 0.600 | 0.400 | 0.100 |" in text


def test_mass_is_drawn_where_it_was_measured(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra demo or bench")
    assert not draw_mass([{"task": "hard"}], tmp_path / "mass.png") and not list(tmp_path.iterdir())
    rows = [{"mass_by_snr": {"20": 0.5, "-5": share, "-40": 0.1}} for share in (0.2, 0.4)]
    assert draw_mass(rows, tmp_path / "docs" / "mass.png")
    assert (tmp_path / "docs" / "mass.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("grid", [(3, 3), (6, 6), (12, 12)])
def test_every_cell_of_the_canvas_holds_its_share_of_the_tokens(grid):
    cells = cells_of_tokens(grid).view(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            wanted = (row * GRID // grid[0]) * GRID + column * GRID // grid[1]
            assert cells[row, column] == wanted
    assert GRID * CELL == 96


def test_pointing_counts_right_answers_alone():
    """A model that always answers 4 and always looks at the token in the middle."""

    class Encoder(torch.nn.Module):
        grid = (3, 3)

    class Model(torch.nn.Module):
        modalities = ("image", "audio")

        def __init__(self):
            super().__init__()
            self.encoders = {"image": Encoder()}

        def forward(self, inputs, lengths):
            from crossmodal.models import FusionOutput

            return FusionOutput(torch.nn.functional.one_hot(torch.full((len(lengths["image"]),), 4), 9).float())

        def attention(self, inputs, lengths):
            weights = torch.full((len(lengths["image"]), 2, 9), 0.05)
            weights[:, 1, 4] = 0.6
            return {"image": weights}

    class Canvases:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            from crossmodal.data import Sample

            return Sample({"image": torch.zeros(1, 96, 96), "audio": torch.zeros(4)}, torch.tensor(index))

    description = {
        "modalities": {
            "image": {"kind": "image", "size": [1, 96, 96], "sample_rate": None, "vocabulary": None},
            "audio": {"kind": "audio", "size": None, "sample_rate": 8000, "vocabulary": None},
        }
    }
    found = pointing(Model(), description, Canvases())
    assert found["strongest"] == 1.0
    assert found["mass"] == pytest.approx((0.6 + 8 * 0.05) / 9)


def test_mass_is_told_for_every_ratio(root):
    config = config_of(Case("hard", "queries with quality", 0), str(root), root)
    splits = av_mnist(root, "hard")
    description = describe_model(config, splits)
    shares = mass_by_snr(build_model(description).eval(), description, splits.test)
    assert len(shares) == 8 and all(0 < share < 1 for share in shares.values())
