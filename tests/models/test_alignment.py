"""Measures of alignment on cases whose answer is known."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from crossmodal.models import discriminator_accuracy, modality_gap, recall_at


def test_recall_counts_rows_with_a_partner_among_the_nearest():
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]])
    same = torch.eye(3, dtype=torch.bool)
    assert [round(recall_at(cosines, same, k), 4) for k in (1, 2, 3, 9)] == [0.3333, 0.6667, 1.0, 1.0]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_recall_of_columns_that_are_equally_near_is_the_mean_over_their_orders(k):
    torch.manual_seed(k)
    cosines = torch.randint(0, 3, (12, 6)) / 4
    same = torch.rand(12, 6) < 0.3
    hits = []
    for order in itertools.permutations(range(6)):  # a stable sort of every order of the columns
        nearest = cosines[:, order].sort(dim=1, descending=True, stable=True).indices[:, :k]
        hits.append(same[:, order].gather(1, nearest).any(1).double().mean().item())
    assert recall_at(cosines, same, k) == pytest.approx(sum(hits) / len(hits), abs=1e-9)
    assert min(hits) < max(hits)  # orders differ: the mean is not what topk happens to give


def test_recall_takes_what_float32_cannot_tell_apart_for_equal():
    one = torch.tensor([[0.9, 0.9 + 6e-8]])
    assert recall_at(one, torch.tensor([[False, True]])) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_cosine_that_is_not_a_number_is_found_by_nobody(k):
    nan = float("nan")
    assert recall_at(torch.full((2, 3), nan), torch.ones(2, 3, dtype=torch.bool), k) == 0
    cosines = torch.tensor([[nan, 0.5, 0.1], [nan, 0.5, 0.1]])
    first, last = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    assert recall_at(cosines, torch.stack([first, first]), k) == 0
    assert recall_at(cosines, torch.stack([first, last]), k) == (0.5 if k > 1 else 0)


def test_gap_is_the_distance_of_the_means():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert modality_gap(first, first) == 0
    assert abs(modality_gap(first, -first) - 2**0.5) < 1e-6


def test_discriminator_tells_what_is_apart_and_guesses_what_is_not():
    def draw(shift, seed):
        generator = torch.Generator().manual_seed(seed)
        return normalize(torch.randn(400, 8, generator=generator) + shift, dim=1)

    assert discriminator_accuracy((draw(0, 0), draw(3, 1)), (draw(0, 2), draw(3, 3)), steps=60) > 0.98
    assert abs(discriminator_accuracy((draw(0, 0), draw(0, 1)), (draw(0, 2), draw(0, 3)), steps=60) - 0.5) < 0.08


def test_discriminator_leaves_the_global_random_state_alone():
    values = torch.randn(10, 4)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    discriminator_accuracy((values, values), (values, values), steps=2)
    assert torch.equal(torch.rand(3), wanted)


def apart(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(64, 4, generator=generator).to(dtype) for _ in range(2))
    return first, second + 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_discriminator_judges_embeddings_of_any_dtype(dtype):
    assert discriminator_accuracy(apart(dtype), apart(dtype), steps=20) > 0.98


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_discriminator_learns_where_nothing_else_does(mode):
    wanted = discriminator_accuracy(apart(), apart(), steps=3)
    with mode():
        assert discriminator_accuracy(apart(), apart(), steps=3) == wanted
