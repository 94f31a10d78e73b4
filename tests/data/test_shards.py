"""Samples from tar files: the same as from the manifest, in an order of their own, and from any step on."""

import io
import json
import re
import tarfile

import pytest

pytest.importorskip("webdataset", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data.audio_file import BrokenFileError
from crossmodal.data.collate import Collate
from crossmodal.data.loader import evaluation_loader
from crossmodal.data.manifest import ManifestOptions, manifest_splits, training_rows
from crossmodal.data.shards import write_shards
from crossmodal.train.config import make_config
from crossmodal.train.run import start_run
from tests.train.runs import SETTINGS, make_manifest

SIZE = (1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    make_manifest(folder)
    assert write_shards(training_rows(folder / "m.jsonl"), folder, str(folder / "train-%03d.tar"), samples=10) == 36
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


def test_training_rows_are_those_that_training_learns_from(tmp_path):
    """Also where no column says which they are."""
    rows = [{"text": f"word {number}", "label": "ab"[number % 2]} for number in range(50)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = manifest_splits(tmp_path / "m.jsonl", None, ManifestOptions()).train
    numbers = [int(train[index].name.rpartition(" ")[2]) - 1 for index in range(len(train))]
    assert training_rows(tmp_path / "m.jsonl") == [rows[number] for number in numbers] and len(numbers) == 40


def test_training_rows_are_what_the_table_says_whatever_the_files_and_labels_are(tmp_path):
    (tmp_path / "m.csv").write_text(
        "image,label,split\ngone.png,n/a,train\n,b,train\na.png,c,train,more\na.png,d,val\n"
    )
    assert training_rows(tmp_path / "m.csv") == [{"image": "gone.png", "label": "n/a"}]


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


def write_some(tmp_path, *changes, name="some"):
    """Six good samples, then one for each change."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra train")
    image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"?")
    good = {"image": "a.png", "text": "it", "label": "left"}
    rows = [good] * 6 + [{key: value for key, value in {**good, **change}.items() if value} for change in changes]
    write_shards(rows, tmp_path, str(tmp_path / f"{name}-%d.tar"))
    return str(tmp_path / f"{name}-*.tar")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": "broken.png"}, "000000007.image.png: no image"),
        ({"label": "up"}, "000000007 has the label 'up', which is none of left, right"),
        ({"label": None}, "000000007 has no label"),
        ({"text": "\ud83d"}, r"000000007 has half a character, \ud83d, in text"),
        ({"image": None, "text": None}, "000000007 has nothing to learn from"),
    ],
    ids=["image", "label", "no label", "half a character", "nothing"],
)
def test_broken_sample_of_a_shard_is_named_skipped_and_counted_or_stops(folder, tmp_path, change, problem):
    splits = open_splits(folder, shards=write_some(tmp_path, change))
    assert len(splits.train) == 6 and sum(len(batch.labels) for batch in read(splits.train)) == 6
    (skipped,) = splits.description["skipped"]
    assert "some-0.tar" in skipped and problem in skipped and "\n" not in skipped
    with pytest.raises(BrokenFileError, match=re.escape(problem)):
        open_splits(folder, shards=write_some(tmp_path, change), strict=True)


def test_sample_with_nothing_of_the_run_s_modalities_is_named_skipped_and_counted_or_stops(folder, tmp_path):
    """As a row of the manifest is; an empty one would be learnt from."""
    pattern, options = (
        write_some(tmp_path, {"image": None}),
        {"image_size": SIZE, "shards": str(tmp_path / "some-*.tar")},
    )
    splits = manifest_splits(folder / "m.jsonl", None, ManifestOptions(**options), only=("image",))
    assert len(splits.train) == 6 and all(set(batch.inputs) == {"image"} for batch in read(splits.train))
    problem = "000000007 has nothing of the modalities image"
    assert problem in splits.description["skipped"][-1] and pattern == options["shards"]
    alone = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in alone if row["image"]))
    with pytest.raises(BrokenFileError, match=problem):
        manifest_splits(
            tmp_path / "m.jsonl", folder, ManifestOptions(**options, strict=True, verify=True), only=("image",)
        )


def test_row_whose_file_is_missing_is_left_out_of_the_shards_and_named(folder, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="crossmodal"):
        pattern = write_some(tmp_path, {"image": "gone.png"}, {"text": "right"})
    assert caplog.messages == [f"write_shards: row 7 is left out: {tmp_path}/gone.png: No such file or directory"]
    assert len(open_splits(folder, shards=pattern).train) == 7


def test_shards_of_no_row_are_not_written(tmp_path):
    rows = [{"image": "gone.png", "label": "a"}] * 3
    with pytest.raises(FileNotFoundError, match=r"no row can be written; the last one: row 3 .*gone\.png"):
        write_shards(rows, tmp_path, str(tmp_path / "train-%d.tar"))
    assert not list(tmp_path.iterdir())


def test_writing_that_ends_early_leaves_the_shards_that_were_there(tmp_path):
    """A short tar would be taken for a whole one."""
    write_some(tmp_path)
    before = (tmp_path / "some-0.tar").read_bytes()

    def rows():
        yield {"text": "it", "label": "left"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(rows(), tmp_path, str(tmp_path / "some-%d.tar"))
    assert (tmp_path / "some-0.tar").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "broken.png", "some-0.tar"}


def test_stream_without_its_broken_samples_goes_on_at_any_step(folder, tmp_path):
    pattern = write_some(tmp_path, {"image": "broken.png"}, {"text": "right"}, {"label": "up"}, {"text": "left"})
    data = open_splits(folder, shards=pattern).train
    whole = contents(read(data))
    assert len(whole) == 8 and contents(read(data, first_step=1)) == whole[4:]


@pytest.mark.parametrize("workers", [0, 1])
def test_without_verification_a_broken_sample_stops_when_its_turn_comes(folder, tmp_path, workers):
    data = open_splits(folder, shards=write_some(tmp_path, {"image": "broken.png"}), verify=False).train
    assert len(data) == 7
    with pytest.raises(BrokenFileError, match=r"^\S*some-0\.tar 000000007\.image\.png: [^\n]*$"):
        read(data, workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_shard_that_has_shrunk_is_named(folder, tmp_path, workers):
    data = open_splits(folder, shards=write_some(tmp_path, {"text": "right"})).train
    write_some(tmp_path)
    with pytest.raises(BrokenFileError, match=r"^\S*some-0\.tar: has lost 1 of its samples since it was opened$"):
        read(data, workers=workers)


def test_what_cannot_be_opened_as_a_file_is_named(folder, tmp_path):
    write_some(tmp_path)
    (tmp_path / "some-1.tar").mkdir()
    (tmp_path / "some-2.tar").symlink_to("nowhere")
    problems = open_splits(folder, shards=str(tmp_path / "some-*.tar")).description["skipped"]
    assert [problem.partition("some-")[2] for problem in problems] == [
        "1.tar: Is a directory",
        "2.tar: No such file or directory",
    ]


def damaged(tar):
    """What may become of a tar file, by name, and what is said of it."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        start = [member.offset for member in file][6]  # of the third sample
        end = file.offset
    no_header = f"damaged: no header of a member at byte {start}"
    return {
        "empty": (b"", "empty file|no tar file"),
        "no tar": (b"no tar at all" * 100, "no tar file|truncated header"),
        "no member": (bytes(10240), "holds no samples"),
        "cut within a member": (tar[: start + 600], "unexpected end of data|empty header"),
        "cut between samples": (tar[:start], "cut off: the end of the archive is missing"),
        "no end": (tar[:end], "cut off: the end of the archive is missing"),
        "damaged header": (tar[:start] + b"?" * 512 + tar[start + 512 :], no_header),
        "block of zeros": (tar[:start] + bytes(512) + tar[start + 512 :], no_header),
    }


FAULTS = (
    "empty",
    "no tar",
    "no member",
    "cut within a member",
    "cut between samples",
    "no end",
    "damaged header",
    "block of zeros",
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verify", [True, False])
def test_broken_tar_is_named_skipped_and_counted_or_stops(folder, tmp_path, fault, verify):
    pattern = write_some(tmp_path)
    whole = (tmp_path / "some-0.tar").read_bytes()
    content, problem = damaged(whole)[fault]
    (tmp_path / "some-1.tar").write_bytes(content)
    splits = open_splits(folder, shards=pattern, verify=verify)
    assert len(splits.train) == 6 and sum(len(batch.labels) for batch in read(splits.train)) == 6
    (skipped,) = splits.description["skipped"]
    assert re.search(rf"some-1\.tar: ({problem})", skipped) and "\n" not in skipped and "object" not in skipped
    with pytest.raises(BrokenFileError, match=rf"some-1\.tar: ({problem})"):
        open_splits(folder, shards=pattern, verify=verify, strict=True)


def test_shards_without_a_sample_that_can_be_used_say_why(folder, tmp_path):
    (tmp_path / "none-0.tar").write_bytes(b"")
    with pytest.raises(BrokenFileError, match=r"no samples .*1 skipped; the first: .*none-0\.tar: "):
        open_splits(folder, shards=str(tmp_path / "none-*.tar"))


def test_names_of_files_may_end_in_capitals(folder, tmp_path):
    pattern = write_some(tmp_path)
    (tmp_path / "A.PNG").write_bytes((tmp_path / "a.png").read_bytes())
    capital = write_some(tmp_path, {"image": "A.PNG"}, name="capital")
    assert len(open_splits(folder, shards=capital).train) == 7
    assert (
        contents(read(open_splits(folder, shards=capital).train))[0]
        == contents(read(open_splits(folder, shards=pattern).train))[0]
    )


@pytest.mark.parametrize("end", ["png", "PNG"])
def test_members_with_the_usual_names_are_read(folder, tmp_path, end):
    write_some(tmp_path)
    members = {end: (tmp_path / "a.png").read_bytes(), "txt": b"it is", "cls": b"right\n"}
    with tarfile.open(tmp_path / "usual-0.tar", "w") as file:
        for number in range(5):
            for name, content in members.items():
                entry = tarfile.TarInfo(f"{number}.{name}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    for verify in (True, False):
        data = open_splits(folder, shards=str(tmp_path / "usual-*.tar"), verify=verify).train
        (batch,) = data.batches(Collate(data.modalities), 5, steps=1)
        assert len(data) == 5 and batch.labels.tolist() == [1] * 5
        assert batch.lengths["text"].tolist() == [2] * 5 and batch.lengths["image"].tolist() == [1] * 5


def test_files_of_training_rows_are_needed_in_the_shards_alone(folder, tmp_path):
    pattern = write_some(tmp_path)
    rows = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
    for row in rows:
        row["image"] = "elsewhere.png" if row["split"] == "train" else str(folder / row["image"])
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = open_splits(tmp_path, shards=pattern)
    assert len(splits.train) == 6 and splits.description["skipped"] == []


def test_evaluation_of_shards_is_refused(folder):
    data = open_splits(folder, shards="train-*.tar").train
    with pytest.raises(ValueError, match="for training only"):
        evaluation_loader(data, Collate(data.modalities), 4)


def test_pattern_that_names_nothing_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"none-\*\.tar: no such shards"):
        open_splits(folder, shards="none-*.tar")


def test_streamed_samples_have_no_numbers(folder):
    with pytest.raises(TypeError, match="read in order only"):
        open_splits(folder, shards="train-*.tar").train[0]


def test_shards_of_no_rows_are_not_written_and_those_that_were_there_stay(folder, tmp_path):
    write_some(tmp_path, {})
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    with pytest.raises(FileNotFoundError, match="no row can be written"):
        write_shards([], folder, str(tmp_path / "some-%d.tar"))
    assert before and {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before


def test_fewer_shards_leave_none_of_those_before(tmp_path):
    """Their samples would be learnt from."""
    rows, pattern = [{"text": "a", "label": "a"}] * 10, str(tmp_path / "t-%05d.tar")
    (tmp_path / "other.tar").touch()
    for count, left in ((10, 5), (4, 2)):
        write_shards(rows[:count], tmp_path, pattern, samples=2)
        assert len(list(tmp_path.glob("t-*.tar"))) == left
    assert (tmp_path / "other.tar").exists()


def test_row_whose_path_can_be_none_is_left_out_of_the_shards_and_named(tmp_path, caplog):
    rows = [{"image": "a\0.png", "label": "a"}, {"text": "a", "label": "a"}]
    with caplog.at_level("WARNING", logger="crossmodal"):
        assert write_shards(rows, tmp_path, str(tmp_path / "t-%05d.tar")) == 1
    assert caplog.messages == ["write_shards: row 1 is left out: embedded null byte"]
