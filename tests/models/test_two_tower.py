"""Two towers: unit vectors, and a training step that brings partners together."""

import pytest
import torch

from crossmodal.data import Batch
from crossmodal.encoders import TextEncoder
from crossmodal.models import TwoTower
from crossmodal.train.retrieval import RetrievalLearner


def make(**options):
    torch.manual_seed(0)
    return TwoTower({"a": TextEncoder(9, 16), "b": TextEncoder(9, 16)}, channels=16, width=16, **options)


def make_batch(size=32):
    labels = torch.randint(4, (size,))
    words = (labels + 1).unsqueeze(1)
    ones = torch.ones(size, dtype=torch.int64)
    return Batch({"a": words, "b": words + 4}, {"a": ones, "b": ones}, labels)


def test_embeddings_have_length_one_and_say_who_is_there():
    batch = make_batch(3)
    lengths = {"a": torch.tensor([1, 0, 1]), "b": batch.lengths["b"]}
    out = make()(batch.inputs, lengths)
    torch.testing.assert_close(out.vectors["a"].norm(dim=1), torch.ones(3))
    assert out.present["a"].tolist() == [True, False, True]


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("adversary", ["none", "discriminator", "critic"])
def test_training_brings_partners_together(loss, adversary):
    model = make(adversary=adversary)
    learner = RetrievalLearner(("a", "b"), loss=loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        learner.step(model, make_batch()).loss.backward()
        optimizer.step()
    measured = learner.measure(learner.answer(model.eval(), [make_batch()]))
    assert measured["accuracy"] > 0.95 and measured["accuracy_back"] > 0.95


def test_samples_without_a_partner_are_left_out():
    batch = make_batch(6)
    batch.lengths["a"] = torch.tensor([1, 1, 0, 1, 0, 1])
    learner = RetrievalLearner(("a", "b"))
    assert learner.step(make(), batch).samples == 4
    assert len(learner.answer(make(), [batch]).labels) == 4


def test_two_modalities_are_needed():
    with pytest.raises(ValueError, match="modalities must be two for retrieval, got a"):
        RetrievalLearner(("a",))


def test_unknown_adversary_is_refused():
    with pytest.raises(ValueError, match="adversary must be one of none, discriminator, critic, got 'judge'"):
        make(adversary="judge")
