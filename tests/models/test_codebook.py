"""A discrete common space: the nearest codes and nothing else, and a gradient that goes past the choice."""

import pytest
import torch
from torch.nn.functional import normalize

from crossmodal.models import SharedCodebook
from crossmodal.models.codebook import OwnStatistics


def nearest_by_hand(book, values):
    """Part by part, row by row, by distance."""
    size = values.shape[1] // book.groups
    rows = []
    for row in values.double():
        parts = []
        for group in range(book.groups):
            part = normalize(row[group * size : (group + 1) * size], dim=0)
            codes = normalize(book.codes[group].double(), dim=1)
            parts.append(codes[(codes - part).square().sum(1).argmin()])
        rows.append(torch.cat(parts) / book.groups**0.5)
    return torch.stack(rows)


@pytest.mark.parametrize("training", [True, False])
def test_vectors_are_the_nearest_codes_and_have_length_one(training):
    book = SharedCodebook(12, groups=3, codes=5, noise=0.0, doubt=0.0).train(training)
    values = torch.randn(40, 12)
    out = book(values)
    torch.testing.assert_close(out.double(), nearest_by_hand(book, values))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(40))


def test_vectors_tell_no_more_than_the_choices():
    book = SharedCodebook(8, groups=2, codes=3).eval()
    values = torch.randn(200, 8)
    out, choices = book(values), book.choices(values)
    for row in range(200):
        same = (choices == choices[row]).all(1)
        assert torch.equal(out[same], out[row].expand(int(same.sum()), -1))
    assert len(out.unique(dim=0)) == len(choices.unique(dim=0)) <= 16


def test_parts_between_two_codes_are_left_out_in_evaluation():
    book = SharedCodebook(4, groups=2, codes=2, doubt=0.1, noise=0.0)
    with torch.no_grad():
        book.codes.copy_(torch.eye(2).expand(2, 2, 2))
    values = torch.tensor([[1.0, 0.0, 0.70, 0.72], [0.60, 0.72, 0.0, 2.0]])
    half = 0.5**0.5
    torch.testing.assert_close(book.eval()(values), torch.tensor([[half, 0, 0, 0], [0, half, 0, half]]))
    assert book.choices(values).tolist() == [[0, -1], [1, 1]]
    torch.testing.assert_close(book.train()(values).norm(dim=1), torch.ones(2))


def test_gradient_is_that_of_the_softmax_over_the_codes():
    book = SharedCodebook(6, groups=2, codes=4, sharpness=3.0, noise=0.0).double()
    values = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, 6, dtype=torch.float64)
    (got,) = torch.autograd.grad((book(values) * weights).sum(), values)
    codes = normalize(book.codes.detach(), dim=2)
    scores = 3 * torch.einsum("ngd,gkd->ngk", normalize(values.unflatten(1, (2, 3)), dim=2), codes)
    soft = torch.einsum("ngk,gkd->ngd", scores.softmax(2), codes).flatten(1) / 2**0.5
    (wanted,) = torch.autograd.grad((soft * weights).sum(), values)
    torch.testing.assert_close(got, wanted)
    assert got.abs().max() > 0


def test_noise_is_of_training_alone_and_of_torchs_generator():
    book = SharedCodebook(8, groups=4, codes=6, noise=3.0)
    values = torch.randn(100, 8)
    torch.manual_seed(3)
    first = book(values)
    assert not torch.equal(first, book(values))
    torch.manual_seed(3)
    assert torch.equal(first, book(values))
    book.eval()
    assert torch.equal(book(values), book(values))


def test_own_statistics_are_those_of_the_samples_that_are_there():
    norm = OwnStatistics(5)
    values, present = 3 * torch.randn(20, 5) + 7, torch.arange(20) % 3 > 0
    values[~present] = 1e6
    there = values[present].double()
    wanted = (there - there.mean(0)) / (there.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(values, present)[present].double(), wanted, atol=1e-5, rtol=1e-4)
    for _ in range(200):
        norm(values, present)
    norm.eval()
    wanted = (there - there.mean(0)) / (there.var(0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(values[present], present[present]).double(), wanted, atol=1e-4, rtol=1e-3)
    norm.train()
    assert norm(values, torch.zeros(20, dtype=torch.bool)).isfinite().all()


def test_codebooks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="width must be a multiple of groups, got 10 and 4"):
        SharedCodebook(10, groups=4)
    with pytest.raises(ValueError, match="codes must be at least 2, got 1"):
        SharedCodebook(8, codes=1)
