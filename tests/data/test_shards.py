"""Samples from tar files: the same as from the manifest, in an order of their own, and from any step on."""

import json

import pytest

pytest.importorskip("webdataset", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.collate import Collate
from crossmodal.data.manifest import ManifestOptions, manifest_splits
from crossmodal.data.shards import write_shards
from crossmodal.train.config import make_config
from crossmodal.train.run import start_run
from tests.train.runs import SETTINGS, make_manifest

SIZE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make_manifest(folder)
    rows = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
    training = [row for row in rows if row["split"] == "train"]
    assert write_shards(training, folder, str(folder / "train-%03d.tar"), samples=10) == 36
    return folder


def open_splits(folder, **options):
    return manifest_splits(folder / "m.jsonl", None, ManifestOptions(image_size=SIZE, **options))


def read(data, **options):
    return list(data.batches(Collate(data.modalities), 4, steps=9, **options))


def contents(batches):
    rows = []
    for batch in batches:
        for row in range(len(batch.labels)):
            words = batch.inputs["text"][row, : batch.lengths["text"][row]].tolist()
            rows.append((batch.inputs["image"][row].numpy().tobytes(), tuple(words), int(batch.labels[row])))
    return rows


def test_an_epoch_holds_the_training_rows_once(folder):
    rows = open_splits(folder).train
    wanted = contents([Collate(rows.modalities)([rows[i] for i in range(len(rows))])])
    streamed = open_splits(folder, shards="train-*.tar").train
    assert len(streamed) == 36
    assert sorted(contents(read(streamed))) == sorted(wanted)


def test_epochs_have_their_own_order_and_repeat(folder):
    data = open_splits(folder, shards="train-*.tar").train
    first, again = contents(read(data)), contents(read(data))
    data.set_epoch(1)
    assert first == again != contents(read(data))


def test_stream_goes_on_at_any_step_and_is_shared_by_processes(folder):
    data = open_splits(folder, shards="train-*.tar").train
    whole = contents(read(data))
    assert contents(read(data, first_step=3)) == whole[12:]
    parts = [list(data.batches(Collate(data.modalities), 2, steps=9, rank=r, world_size=2)) for r in range(2)]
    assert contents(batch for pair in zip(*parts, strict=True) for batch in pair) == whole


def test_worker_reads_the_same_ahead(folder):
    data = open_splits(folder, shards="train-*.tar").train
    assert contents(read(data, workers=1)) == contents(read(data))


def test_training_learns_from_shards(folder, tmp_path):
    options = {"image_size": list(SIZE), "shards": "train-*.tar"}
    settings = {**SETTINGS, "epochs": 12, "learning_rate": 0.01, "dropout": 0.0, "options": options}
    metrics = start_run(make_config({**settings, "data": str(folder / "m.jsonl")}), tmp_path)
    assert metrics["test"]["accuracy"] > 0.9


def test_broken_part_of_a_shard_is_named(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"?")
    row = {"image": "a.png", "text": "it", "label": "left"}
    write_shards([row] * 4, tmp_path, str(tmp_path / "bad-%d.tar"))
    data = manifest_splits(
        folder / "m.jsonl", None, ManifestOptions(image_size=SIZE, shards=str(tmp_path / "bad-*.tar"))
    ).train
    with pytest.raises(BrokenFileError, match=r"bad-0\.tar"):
        list(data.batches(Collate(data.modalities), 4, steps=1))


def test_pattern_that_names_nothing_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"none-\*\.tar: no such shards"):
        open_splits(folder, shards="none-*.tar")


def test_streamed_samples_have_no_numbers(folder):
    with pytest.raises(TypeError, match="read in order only"):
        open_splits(folder, shards="train-*.tar").train[0]
