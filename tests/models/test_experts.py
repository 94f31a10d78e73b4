"""Experts: a product of what is there; quality that takes mass from noise."""

import pytest
import torch
from torch import nn

from crossmodal.data.sample import Question
from crossmodal.encoders import EncoderOutput
from crossmodal.models import FusionClassifier, modality_sets
from crossmodal.models.experts import mean_of_cells, product_of_experts

WIDTH = 16


class Linear(nn.Module):
    """One token per sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, WIDTH)

    def forward(self, values, lengths):
        return EncoderOutput(self.layer(values).unsqueeze(1), lengths)


def make_model(**options):
    return FusionClassifier(
        {"a": Linear(), "b": Linear()}, channels=WIDTH, num_classes=4, width=WIDTH, num_queries=2, **options
    )


def make_batch(size=6):
    lengths = {"a": torch.tensor([1, 1, 0] * (size // 3)), "b": torch.tensor([1, 0, 1] * (size // 3))}
    return {"a": torch.randn(size, 3), "b": torch.randn(size, 3)}, lengths


def test_product_is_the_sum_of_log_probabilities_of_what_is_there():
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    present = torch.tensor([[True, True], [True, False]])
    out = product_of_experts([first, second], [torch.ones(2), torch.full((2,), 0.5)], present)
    torch.testing.assert_close(out[0], first[0].log_softmax(0) + 0.5 * second[0].log_softmax(0))
    torch.testing.assert_close(out[1], first[1].log_softmax(0))


def test_experts_begin_fully_trusted():
    """With a head that says nothing the first answer is the log-probability sum."""
    model = make_model(experts="product")
    nn.init.zeros_(model.head[-1].weight)
    nn.init.zeros_(model.head[-1].bias)
    inputs, lengths = make_batch()
    output = model(inputs, lengths)
    wanted = sum(output.experts[m].log_softmax(1) * (lengths[m] > 0).unsqueeze(1) for m in ("a", "b"))
    torch.testing.assert_close(output.logits, wanted, rtol=1e-3, atol=1e-3)


def test_answers_of_experts_over_sets_are_those_without_the_others():
    model = make_model(experts="product", quality=True)
    inputs, lengths = make_batch()
    sets = modality_sets(2)
    together = model(inputs, lengths, sets=sets).logits
    for row, kept in enumerate(sets.tolist()):
        rest = {name: lengths[name] * keep for name, keep in zip(model.modalities, kept, strict=True)}
        torch.testing.assert_close(together[row], model(inputs, rest).logits)


def test_auxiliary_experts_do_not_change_the_answer():
    torch.manual_seed(0)
    plain = make_model()
    torch.manual_seed(0)
    beside = make_model(experts="auxiliary")
    batch = make_batch()
    assert torch.equal(plain(*batch).logits, beside(*batch).logits)
    assert set(beside(*batch).experts) == {"a", "b"}


def test_question_about_cells_is_answered_from_the_tokens_in_each():
    tokens = torch.arange(6 * 4).float().view(1, 24, 1)  # 6 rows of 4
    found = mean_of_cells(tokens, (6, 4), (3, 2)).view(3, 2)
    grid = tokens.view(6, 4)
    for row in range(3):
        for column in range(2):
            assert found[row, column] == grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
    with pytest.raises(ValueError, match=r"grid must be a multiple of cells, got \(6, 4\) and \(4, 2\)"):
        mean_of_cells(tokens, (6, 4), (4, 2))


def test_modalities_asked_about_the_same_thing_share_the_answerer():
    model = make_model(auxiliary={"a": Question("digit", 10), "b": Question("digit", 10)})
    inputs, lengths = make_batch()
    answers = model(inputs, lengths).auxiliary
    assert list(model.auxiliary.maps) == ["digit"] and set(answers) == {"a", "b"}
    for name in ("a", "b"):
        token = model.to_common[name](model.encoders[name](inputs[name], lengths[name]).features)[:, 0]
        wanted = model.auxiliary.maps["digit"](token * (lengths[name] > 0).unsqueeze(1))
        torch.testing.assert_close(answers[name], wanted)


def test_modality_that_turns_to_noise_loses_mass():
    """b repeats the label, or is noise, half of the time each; a always tells it, less loudly."""
    torch.manual_seed(0)
    model = make_model(quality=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    ones = {"a": torch.ones(64, dtype=torch.int64), "b": torch.ones(64, dtype=torch.int64)}
    signs = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]])

    def draw():
        labels, noisy = torch.randint(4, (64,)), torch.rand(64) < 0.5
        told = signs[labels]
        b = torch.where(noisy.unsqueeze(1), signs[torch.randint(4, (64,))] + torch.tensor([0.0, 0, 3]), told)
        return {"a": told + 0.7 * torch.randn(64, 3), "b": b}, labels, noisy

    for _ in range(250):
        inputs, labels, _ = draw()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs, ones).logits, labels).backward()
        optimizer.step()
    inputs, _, noisy = draw()
    mass = model(inputs, ones, return_mass=True).mass.mean((1, 2))[:, 1]
    assert mass[noisy].mean() < 0.7 * mass[~noisy].mean()


def test_quality_needs_a_form_with_weights():
    with pytest.raises(ValueError, match="quality must be False for the fusion 'concat'"):
        make_model(fusion="concat", quality=True)


def test_unknown_experts_are_refused():
    with pytest.raises(ValueError, match="none, auxiliary, product, got 'all'"):
        make_model(experts="all")
