"""The moving average against its formula in float64."""

import pytest
import torch
from torch import nn

from crossmodal.train.average import MovingAverage


@pytest.mark.parametrize("forget", [True, False])
def test_average_is_its_formula(forget):
    """Forgetting, the beginning has no weight left after ten steps; otherwise it has that of all powers of decay."""
    layer = nn.Linear(3, 2)
    average = MovingAverage(layer, 0.9, forget=forget)
    wanted = layer.weight.detach().double()
    share = 1.0
    for step in range(10):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(2, 3))
        average.update(layer, step)
        decay = min(0.9, (1 + step) / (10 + step)) if forget else 0.9
        wanted = decay * wanted + (1 - decay) * layer.weight.detach().double()
        share *= decay
    assert share < 2e-5 if forget else share == pytest.approx(0.9**10)
    torch.testing.assert_close(average.weights["weight"], wanted.float())


def test_exchanging_twice_changes_nothing():
    layer = nn.Linear(3, 2)
    average = MovingAverage(layer, 0.5)
    with torch.no_grad():
        layer.weight.zero_()
    kept = average.weights["weight"].clone()
    average.exchange(layer)
    assert torch.equal(layer.weight, kept) and not average.weights["weight"].any()
    average.exchange(layer)
    assert torch.equal(average.weights["weight"], kept) and not layer.weight.any()
