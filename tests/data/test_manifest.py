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
from crossmodal.data.manifest import ManifestError, ManifestOptions, manifest_splits, read_manifest  # noqa: E402
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


def test_label_that_is_no_number_is_named(folder):
    path = write_csv(folder / "m.csv", ROWS)
    with pytest.raises(ManifestError, match="row 1 has the label 'cat', which is no number"):
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
