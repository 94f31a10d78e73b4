"""Manifests: every form of table, labels of every task, broken rows named, skipped and counted."""

import json
import time

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra train")
soundfile = pytest.importorskip("soundfile", reason="needs the extra train")
Image = pytest.importorskip("PIL.Image", reason="needs the extra train")

from crossmodal.data.audio_file import BrokenFileError  # noqa: E402
from crossmodal.data.collate import Collate  # noqa: E402
from crossmodal.data.manifest import (  # noqa: E402
    ManifestError,
    ManifestOptions,
    make_options,
    manifest_splits,
    read_manifest,
)
from crossmodal.data.reader import reader_from  # noqa: E402

ROWS = [
    {"image": "a.png", "audio": "a.wav", "text": "a red cat", "label": "cat", "split": "train"},
    {"image": "", "audio": "a.wav", "text": "a dog", "label": "dog", "split": "train"},
    {"image": "a.png", "audio": "", "text": "", "label": "dog", "split": "val"},
    {"image": "", "audio": "", "text": "blue dog", "label": "cat", "split": "test"},
]


def write_csv(path, rows):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps({k: v or None for k, v in row.items()}) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (10, 10), "red").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(1600), 16000)
    return tmp_path


@pytest.mark.parametrize(("write", "name"), [(write_csv, "m.csv"), (write_jsonl, "m.jsonl")])
def test_both_forms_of_table_say_the_same(folder, write, name):
    rows = read_manifest(write(folder / name, ROWS))
    assert [row.cells for row in rows] == [
        {k: v for k, v in row.items() if v and k in ("image", "audio", "text")} for row in ROWS
    ]
    assert [row.label for row in rows] == ["cat", "dog", "dog", "cat"]
    assert [row.split for row in rows] == ["train", "train", "validation", "test"]


def test_empty_cells_are_missing_modalities(folder):
    splits = manifest_splits(write_csv(folder / "m.csv", ROWS), None, ManifestOptions(image_size=(3, 8, 8)))
    batch = Collate(splits.train.modalities)([splits.train[0], splits.train[1]])
    assert {name: lengths.tolist() for name, lengths in batch.lengths.items()} == {
        "image": [1, 0],
        "audio": [1600, 1600],
        "text": [3, 2],
    }
    assert splits.train.classes == ("cat", "dog") and batch.labels.tolist() == [0, 1]


def test_batch_in_which_nobody_has_a_modality_can_be_made(folder):
    splits = manifest_splits(write_csv(folder / "m.csv", ROWS), None, ManifestOptions(image_size=(3, 8, 8)))
    batch = Collate(splits.test.modalities)([splits.test[0]])
    assert batch.inputs["audio"].shape == (1, 1) and batch.lengths["audio"].tolist() == [0]


def test_words_of_the_test_are_unknown_to_the_tokenizer(folder):
    splits = manifest_splits(write_csv(folder / "m.csv", ROWS), None, ManifestOptions(image_size=(3, 8, 8)))
    assert splits.test[0].inputs["text"].tolist()[0] == 1  # "blue" occurs in the test alone
    assert splits.test[0].inputs["text"].tolist()[1] > 1


def test_reader_of_a_description_reads_the_same(folder):
    options = ManifestOptions(image_size=(3, 8, 8), stop_words=("a",))
    splits = manifest_splits(write_csv(folder / "m.csv", ROWS), None, options)
    reader = reader_from(json.loads(json.dumps(splits.description["reader"])))
    for name, values in splits.train[0].inputs.items():
        assert torch.equal(reader.read(name, ROWS[0][name], folder), values)
    assert len(splits.train[0].inputs["text"]) == 2


@pytest.mark.parametrize("text", ["", "   ", "a A"])
def test_text_without_a_word_that_counts_is_a_missing_modality(folder, text):
    rows = [{**ROWS[0], "text": text}, *ROWS[1:]]
    options = ManifestOptions(image_size=(3, 8, 8), stop_words=("a",))
    sample = manifest_splits(write_csv(folder / "m.csv", rows), None, options).train[0]
    assert set(sample.inputs) == {"image", "audio"}


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_of_other_tasks_are_numbers(folder, task):
    labels = {"multilabel": ["red; big", "big", "", "red"], "regression": ["1;2", "0.5;-1", "3;4", "0;0"]}[task]
    rows = [{**row, "label": label or "none"} for row, label in zip(ROWS, labels, strict=True)]
    options = ManifestOptions(image_size=(3, 8, 8), task=task)
    splits = manifest_splits(write_csv(folder / "m.csv", rows), None, options)
    wanted = {"multilabel": [[1, 0, 1], [1, 0, 0]], "regression": [[1, 2], [0.5, -1]]}[task]
    assert [splits.train[row].label.tolist() for row in range(2)] == wanted


def test_broken_files_are_named_and_their_rows_skipped(folder):
    (folder / "b.wav").write_bytes(b"")
    rows = [*ROWS, {**ROWS[0], "audio": "b.wav"}, {**ROWS[0], "image": "none.png"}]
    splits = manifest_splits(write_csv(folder / "m.csv", rows), None, ManifestOptions(image_size=(3, 8, 8)))
    assert len(splits.train) == 2
    skipped = splits.description["skipped"]
    assert len(skipped) == 2 and "row 5" in skipped[0] and "b.wav" in skipped[0] and "none.png" in skipped[1]


def test_broken_file_stops_where_it_is_strict(folder):
    (folder / "b.wav").write_bytes(b"")
    path = write_csv(folder / "m.csv", [*ROWS, {**ROWS[0], "audio": "b.wav"}])
    with pytest.raises(BrokenFileError, match=r"b\.wav"):
        manifest_splits(path, None, ManifestOptions(image_size=(3, 8, 8), strict=True))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"picture": "a.png", "label": "x"}], "at least one of image, audio, text is missing"),
        ([{"image": "a.png"}], "label is missing"),
        ([{"text": "a", "label": ""}], "row 1 has no label"),
        ([{"text": "a", "label": "x", "split": "exam"}], "the split 'exam'"),
        ([{"text": "a", "label": "x"}], "no rows for"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_table_that_cannot_be_used_says_why(tmp_path, rows, message):
    path = write_csv(tmp_path / "m.csv", rows)
    with pytest.raises(ManifestError, match=message):
        manifest_splits(path, None, ManifestOptions())


@pytest.mark.parametrize(("name", "content"), [("m.jsonl", "{]"), ("m.jsonl", "[1]"), ("m.csv", "image,label\n")])
def test_file_that_is_no_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=name):
        read_manifest(tmp_path / name)


def test_labels_of_which_none_is_a_number_are_refused(folder):
    path = write_csv(folder / "m.csv", ROWS)
    with pytest.raises(ManifestError, match=r"\(4 skipped; the first: row 1 has the label 'cat', which is no number"):
        manifest_splits(path, None, ManifestOptions(task="regression", image_size=(3, 8, 8)))


def test_hundred_thousand_rows_open_in_seconds(folder):
    rows = [{"image": "a.png", "text": f"word{i % 500} {i}", "label": str(i % 7)} for i in range(100_000)]
    path = write_csv(folder / "m.csv", rows)
    start = time.process_time()
    splits = manifest_splits(path, None, ManifestOptions(image_size=(3, 8, 8)))
    assert time.process_time() - start < 20
    assert [len(data) for data in splits[:3]] == [80_000, 10_000, 10_000]
    assert splits.test[9_999].inputs["image"].shape == (3, 8, 8)


def test_division_is_the_same_every_time(folder):
    rows = [{"text": f"w{i}", "label": str(i % 2)} for i in range(50)]
    path = write_csv(folder / "m.csv", rows)
    first, second = (manifest_splits(path, None, ManifestOptions(), seed=seed) for seed in (0, 1))
    assert [first.test[i].name for i in range(5)] == [second.test[i].name for i in range(5)]


def names(data):
    return [data[index].name for index in range(len(data))]


def test_rows_stay_in_their_split_whatever_becomes_of_others(folder):
    image = (folder / "a.png").read_bytes()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(image)
    path = write_csv(folder / "m.csv", [{"image": f"{n}.png", "text": f"w{n}", "label": str(n % 2)} for n in range(40)])
    options = ManifestOptions(image_size=(3, 8, 8))
    before = manifest_splits(path, None, options)
    wanted = [names(data) for data in before[:3]]
    for number in (3, 17, 30):
        (folder / f"{number}.png").unlink()
    after = manifest_splits(path, None, options)
    gone = {f"m.csv row {number + 1}" for number in (3, 17, 30)}
    assert [names(data) for data in after[:3]] == [[name for name in part if name not in gone] for part in wanted]
    assert after.description["reader"] == before.description["reader"]  # their texts are there still


def texts(*more, label="label"):
    lines = [f"text,{label}", *(f"w{number},{'ab'[number % 2]}" for number in range(20)), *more]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("line", "problem"),
    [("a red, cat,a", "row 21 has 3 cells, 2 columns"), (",a", "row 21 has nothing to learn from")],
)
def test_row_that_cannot_be_used_is_named_skipped_and_counted_or_stops(tmp_path, line, problem):
    (tmp_path / "m.csv").write_text(texts(line))
    splits = manifest_splits(tmp_path / "m.csv", None, ManifestOptions())
    assert splits.description["skipped"] == [problem]
    assert sum(map(len, splits[:3])) == 20 and splits.train.classes == ("a", "b")
    with pytest.raises(ManifestError, match=problem):
        manifest_splits(tmp_path / "m.csv", None, ManifestOptions(strict=True))


def test_row_with_half_a_character_is_named_skipped_and_counted_or_stops(tmp_path):
    rows = [{"text": f"w{number}", "label": "ab"[number % 2]} for number in range(20)]
    (tmp_path / "M.JSONL").write_text(
        "\n".join(map(json.dumps, [*rows, {"text": "\ud83d", "label": "a", "x": "\ud83d"}]))
    )
    splits = manifest_splits(tmp_path / "M.JSONL", None, ManifestOptions())
    assert splits.description["skipped"] == [r"row 21 has half a character, \ud83d, in text"]
    assert sum(map(len, splits[:3])) == 20
    with pytest.raises(ManifestError, match="row 21 has half a character"):
        manifest_splits(tmp_path / "M.JSONL", None, ManifestOptions(strict=True))


def test_half_a_character_in_a_column_that_is_not_read_is_no_fault(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"text": "a", "label": "b", "note": "\ud83d"}))
    assert read_manifest(tmp_path / "m.jsonl")[0].problem == ""


def test_row_with_fewer_cells_has_none_in_the_last_columns(tmp_path):
    (tmp_path / "m.csv").write_text("label,text,image\na,red\n")
    assert read_manifest(tmp_path / "m.csv")[0].cells == {"text": "red"}


def test_unquoted_comma_in_every_row_is_quoted_in_the_error(tmp_path):
    (tmp_path / "m.csv").write_text("text,label\n" + "a, b,c\n" * 20)
    with pytest.raises(ManifestError, match=r"20 skipped; the first: row 1 has 3 cells, 2 columns"):
        manifest_splits(tmp_path / "m.csv", None, ManifestOptions())


def test_wrong_root_is_seen_in_the_error(folder):
    path = write_csv(folder / "m.csv", [{"image": "a.png", "label": "x"}] * 20)
    with pytest.raises(ManifestError, match=r"20 skipped; the first: row 1: /nowhere/a\.png: no such file"):
        manifest_splits(path, folder.__class__("/nowhere"), ManifestOptions(image_size=(3, 8, 8)))


def test_column_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("text,label,label\na,b,c\n")
    with pytest.raises(ManifestError, match="the column label is there 2 times"):
        read_manifest(tmp_path / "m.csv")


def test_white_space_is_no_label_and_no_part_of_one(tmp_path):
    (tmp_path / "m.csv").write_text(texts("w, a "))
    assert manifest_splits(tmp_path / "m.csv", None, ManifestOptions()).train.classes == ("a", "b")
    (tmp_path / "m.csv").write_text(texts("w,  "))
    with pytest.raises(ManifestError, match="row 21 has no label"):
        read_manifest(tmp_path / "m.csv")


def numbers(folder, *more):
    rows = [{"text": f"w{number}", "label": number / 20} for number in range(20)]
    path = folder / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, *({"text": "w", "label": value} for value in more)]))
    return path


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        *((value, "which is not finite") for value in (float("nan"), float("-inf"), 1e300)),
        *((value, "which is no number") for value in ("n/a", "1;n/a")),
        *((value, "which holds no number") for value in ([], ";")),
        ([1, 2], "which is 2 numbers; the first row has 1"),
    ],
)
def test_label_that_is_no_number_as_the_others_is_a_broken_row(tmp_path, value, problem):
    splits = manifest_splits(numbers(tmp_path, value), None, ManifestOptions(task="regression"))
    assert sum(map(len, splits[:3])) == 20
    (skipped,) = splits.description["skipped"]
    assert skipped.startswith("row 21 has the label") and problem in skipped
    with pytest.raises(ManifestError, match=r"m\.jsonl: row 21 has the label .*" + problem):
        manifest_splits(numbers(tmp_path, value), None, ManifestOptions(task="regression", strict=True))


def test_the_first_label_of_numbers_tells_how_many_there_are(tmp_path):
    path = numbers(tmp_path)
    path.write_text('{"text": "w", "label": "n/a", "split": "train"}\n' + path.read_text())
    splits = manifest_splits(path, None, ManifestOptions(task="regression"))
    assert splits.train.classes == ("output 0",) and sum(map(len, splits[:3])) == 20


def test_a_label_that_names_nothing_is_no_class(tmp_path):
    rows = [{"text": "w", "label": "a"}] * 20 + [{"text": "w", "label": []}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ManifestError, match="row 21 has the label ';', which is none of a"):
        manifest_splits(tmp_path / "m.jsonl", None, ManifestOptions())


@pytest.mark.parametrize(("name", "none"), [("m.jsonl", []), ("m.csv", ";")])
def test_label_of_none_of_the_names(tmp_path, name, none):
    rows = [{"text": "w", "label": label, "split": "train"} for label in ("a", none)]
    rows += [{"text": "w", "label": "a", "split": split} for split in ("val", "test")]
    if name == "m.csv":
        write_csv(tmp_path / name, rows)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    train = manifest_splits(tmp_path / name, None, ManifestOptions(task="multilabel")).train
    assert [train[index].label.tolist() for index in range(2)] == [[1], [0]]


def test_labels_that_all_name_nothing_are_refused(tmp_path):
    path = write_csv(tmp_path / "m.csv", [{"text": "w", "label": ";"}] * 20)
    with pytest.raises(ManifestError, match="no label of any row holds a name"):
        manifest_splits(path, None, ManifestOptions(task="multilabel"))


def test_path_that_no_file_can_have_is_named_and_skipped(folder):
    rows = [{"image": "a.png", "label": "x"}] * 20 + [{"image": "b" * 300, "label": "x"}]
    splits = manifest_splits(write_csv(folder / "m.csv", rows), None, ManifestOptions(image_size=(3, 8, 8)))
    (skipped,) = splits.description["skipped"]
    assert skipped.startswith("row 21: ") and "name too long" in skipped


def test_text_that_is_no_utf8_names_the_file(tmp_path):
    (tmp_path / "m.jsonl").write_bytes('{"text": "café", "label": "a"}'.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"m\.jsonl: no UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_byte_order_mark_is_no_part_of_a_table(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"text": "a", "label": "b"}', encoding="utf-8-sig")
    assert read_manifest(tmp_path / "m.jsonl")[0].label == "b"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stop_words", "number"),
        ("crop", 0),
        ("crop", 2),
        ("erase", 2),
        ("drop_tokens", 1),
        ("drop_tokens", 2),
        ("flip", 3),
        ("image_size", [2, 16, 16]),
        ("image_size", [4, 16, 16]),
        ("vocabulary", 1),
        ("snr_db", 5),
        ("snr_db", [float("nan"), 1]),
        ("snr_db", [10, 0]),
        ("gain_db", -5),
        ("tokens", "words"),
        ("verify", "no"),
        ("shards", ""),
    ],
)
def test_option_that_cannot_be_is_named_with_what_it_may_be(option, value):
    with pytest.raises(ValueError, match=f"^options: {option} must be [^\n]*, got "):
        make_options({option: value})


def test_option_whose_name_is_no_text_is_unknown():
    """As YAML reads ``on``."""
    with pytest.raises(ValueError, match=r"^options must be among .*, got True$"):
        make_options({True: 1})


def test_options_that_can_be_are_taken():
    values = {
        "crop": 0.5,
        "flip": True,
        "erase": 1,
        "gain_db": 3,
        "snr_db": [0, 10],
        "stop_words": ["a"],
        "shards": None,
    }
    assert make_options(values).snr_db == (0, 10) and make_options({}) == ManifestOptions()
