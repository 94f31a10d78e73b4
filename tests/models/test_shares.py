"""Attention of many queries as shares."""

import torch

from crossmodal.models.shares import shares_of


def test_shares_are_the_mean_over_the_queries_that_looked_at_anything():
    looked = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 0.0]])
    weights = torch.stack([looked, torch.zeros(3, 3)]).unsqueeze(1)  # one head
    shares = shares_of(weights)
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0.35, 0.4], [0.0, 0.0, 0.0]]))
