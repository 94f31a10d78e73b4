"""Contrastive losses are their formulas."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from crossmodal.models import hardest_negatives, info_nce, sigmoid_loss

COSINES = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
SAME = torch.tensor([0, 1, 0, 2, 1]).unsqueeze(1) == torch.tensor([0, 1, 0, 2, 1])


def test_info_nce_is_the_mean_of_two_cross_entropies():
    at = torch.arange(5)
    wanted = 0.5 * (cross_entropy(7 * COSINES, at) + cross_entropy(7 * COSINES.T, at))
    torch.testing.assert_close(info_nce(COSINES, 7.0), wanted)


def test_info_nce_takes_the_mean_over_all_partners():
    total = 0.0
    for matrix, same in ((COSINES, SAME), (COSINES.T, SAME.T)):
        for row in range(5):
            logs = [3 * matrix[row, c].item() - torch.logsumexp(3 * matrix[row], 0).item() for c in range(5)]
            partners = [logs[c] for c in range(5) if same[row, c]]
            total -= sum(partners) / len(partners) / 10
    assert info_nce(COSINES, 3.0, same=SAME).item() == pytest.approx(total, rel=1e-5)


def test_hardness_counts_near_negatives_more_and_leaves_equal_ones_alone():
    even = torch.full((4, 4), 0.3) + 0.5 * torch.eye(4)
    torch.testing.assert_close(info_nce(even, 5.0, hardness=2.0), info_nce(even, 5.0))
    assert info_nce(COSINES, 5.0, hardness=2.0) > info_nce(COSINES, 5.0)


def test_sigmoid_loss_is_a_sum_over_pairs():
    wanted = sum(
        math.log1p(math.exp(-(1 if SAME[i, j] else -1) * (4 * COSINES[i, j].item() - 2)))
        for i in range(5)
        for j in range(5)
    )
    assert sigmoid_loss(COSINES, 4.0, -2.0, same=SAME).item() == pytest.approx(wanted / 5, rel=1e-5)


def test_hardest_negatives_are_the_nearest_that_do_not_belong():
    found = hardest_negatives(COSINES, SAME, 2)
    for row, columns in enumerate(found.tolist()):
        others = sorted((c for c in range(5) if not SAME[row, c]), key=lambda c: -COSINES[row, c])
        assert columns == others[:2]


def test_no_rows_have_no_negatives():
    found = hardest_negatives(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), 2)
    assert found.shape == (0, 2) and found.dtype == torch.int64


def test_more_negatives_than_there_are_is_refused():
    with pytest.raises(ValueError, match="count must be at most 3"):
        hardest_negatives(COSINES, SAME, 4)


@pytest.mark.parametrize("hardness", [0.0, 2.0])
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_loss_of_no_pairs_is_zero_and_moves_nothing(loss, hardness):
    vectors = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    scale, shift = torch.tensor(5.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    nobody = torch.zeros(3, dtype=torch.bool)
    cosines = vectors[0][nobody] @ vectors[1][nobody].T
    if loss == "info_nce":
        value = info_nce(cosines, scale, hardness=hardness) + 0.0 * shift
    else:
        value = sigmoid_loss(cosines, scale, shift)
    value.backward()
    assert value == 0
    for moved in (*vectors, scale, shift):
        assert (moved.grad == 0).all()
