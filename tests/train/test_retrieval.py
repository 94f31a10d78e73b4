"""Two towers on data where a modality is often missing."""

import io
import json

import pytest

pytest.importorskip("accelerate", reason="needs the extra train")
pytest.importorskip("tokenizers", reason="needs the extra train")

import torch

from crossmodal.data.batch import Batch, pad
from crossmodal.models.alignment import discriminator_accuracy, recall_at
from crossmodal.train import retrieval
from crossmodal.train.config import make_config
from crossmodal.train.learner import Answers
from crossmodal.train.run import start_run
from tests.train.runs import SETTINGS, make_manifest


def with_one_modality_a_row(folder, *, complete):
    """Every row but each ``complete``-th has an image or a text, not both."""
    manifest = make_manifest(folder)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        if complete and number % complete == 0:
            row["text"] = row["text"] or f"it is {row['label']}"
        else:
            row[("image", "text")[number % 2]] = ""
        if not row["image"] and not row["text"]:
            row["text"] = "it is"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest


def train(manifest, out, **more):
    settings = {**SETTINGS, "fusion": "two_tower", "batch_size": 4, "data": str(manifest), **more}
    return start_run(make_config(settings), out, io.StringIO())


@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("adversary", ["none", "discriminator", "critic"])
def test_batches_without_a_single_pair_teach_nothing(tmp_path, contrastive, adversary):
    manifest = with_one_modality_a_row(tmp_path, complete=7)
    found = train(manifest, tmp_path / "run", contrastive=contrastive, adversary=adversary)
    assert all(0 <= row["val_loss"] <= 1 and row["loss"] == row["loss"] for row in found["history"])


def test_data_without_a_single_pair_are_an_error(tmp_path):
    manifest = with_one_modality_a_row(tmp_path, complete=0)
    with pytest.raises(ValueError, match="no sample of the data has both image and text"):
        train(manifest, tmp_path / "run")


def test_recall_some_rows_at_a_time_is_that_of_all(monkeypatch):
    """Of a validation set the cosines of all pairs would not fit into memory."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 101, 8).unbind()
    labels = torch.randint(20, (101,))
    same = labels.unsqueeze(1) == labels
    monkeypatch.setattr(retrieval, "_CELLS", 7 * 101 + 3)
    found = retrieval.RetrievalLearner(("image", "text")).measure(Answers(torch.cat([first, second], 1), labels))
    assert found["accuracy"] == pytest.approx(recall_at(first @ second.T, same))
    assert found["accuracy_back"] == pytest.approx(recall_at(second @ first.T, same))
    assert found["recall_at_5"] == pytest.approx(recall_at(first @ second.T, same, 5))


def test_towers_that_are_to_look_alike_are_the_worse_the_better_they_are_told_apart():
    """Recall alone would choose an epoch in which they do not yet."""
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(400, 8), dim=1)
    shifted = torch.nn.functional.normalize(vectors + 2.0, dim=1)
    labels = torch.arange(400)
    learner = retrieval.RetrievalLearner(("image", "text"), alike=True)
    asked = torch.stack([labels, labels], 1)
    alike, apart = (
        learner.measure(Answers(torch.cat([vectors, other], 1), labels, asked)) for other in (vectors, shifted)
    )
    assert abs(alike["told_apart"] - 0.5) < 0.1 and apart["told_apart"] > 0.9
    for found in (alike, apart):
        recalls = 0.5 * (found["accuracy"] + found["accuracy_back"])
        assert found["loss"] == pytest.approx(1 - recalls + max(0.0, found["told_apart"] - 0.5))
    indifferent = retrieval.RetrievalLearner(("image", "text")).measure(
        Answers(torch.cat([vectors, shifted], 1), labels)
    )
    assert "told_apart" not in indifferent


def test_an_input_that_comes_again_is_not_learnt_from_and_judged_on():
    """Sixty recordings beside many images: who has learnt their embeddings by heart tells nothing of modalities."""
    torch.manual_seed(0)
    images, sounds = (torch.nn.functional.normalize(torch.randn(count, 8), dim=1) for count in (1200, 60))
    which = torch.arange(1200) // 20
    asked = torch.stack([torch.arange(1200), which], 1)
    answers = Answers(torch.cat([images, sounds[which]], 1), torch.arange(1200), asked)
    found = retrieval.RetrievalLearner(("image", "audio"), alike=True).measure(answers)
    assert abs(found["told_apart"] - 0.5) < 0.1
    by_heart = discriminator_accuracy((images[::2], sounds[which[::2]]), (images[1::2], sounds[which[1::2]]))
    assert by_heart > 0.9
    one = answers._replace(asked=torch.stack([torch.arange(1200), torch.zeros(1200, dtype=torch.int64)], 1))
    assert "told_apart" not in retrieval.RetrievalLearner(("image", "audio"), alike=True).measure(one)


def test_equal_inputs_have_equal_numbers_whatever_stands_beside_them():
    sounds = [torch.tensor([0.1, 0.2, 0.0]), torch.tensor([0.3]), torch.tensor([0.1, 0.2, 0.0])]
    pixels = torch.rand(3, 1, 2, 2)
    pixels[2] = pixels[0]

    def asked(which):
        values, lengths = pad([sounds[i] for i in which])
        here = torch.ones(len(which), dtype=torch.int64)
        inputs = {"image": pixels[which], "audio": values}
        batch = Batch(inputs, {"image": here, "audio": lengths}, torch.arange(len(which)))
        learner = retrieval.RetrievalLearner(("image", "audio"), alike=True)
        return learner.answer(_echo, [batch]).asked

    three, one = asked([0, 1, 2]), asked([1])
    assert torch.equal(three[0], three[2]) and (three[0] != three[1]).all() and torch.equal(three[1], one[0])


def _echo(inputs, lengths):
    """Two towers that answer with one number of each."""
    return {name: lengths[name].unsqueeze(1) for name in inputs}, {name: lengths[name] > 0 for name in inputs}


def test_a_discriminator_s_towers_are_to_look_alike(tmp_path):
    manifest = with_one_modality_a_row(tmp_path, complete=1)
    for adversary in ("critic", "discriminator"):
        found = train(manifest, tmp_path / adversary, adversary=adversary, epochs=1)
        assert ("told_apart" in found["test"]) == ("val_told_apart" in found["history"][0]) == (adversary != "critic")
