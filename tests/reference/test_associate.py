"""The reference of `associate` against loops over single numbers."""

import math

import pytest
import torch

from crossmodal import Source
from crossmodal.reference import associate
from tests.reference.loops import fuse_in_loops

SINK = torch.tensor([0.3, -1.0], dtype=torch.float64)
OPTIONS = {
    "nothing": {},
    "query_lengths": {"query_lengths": torch.tensor([5, 2])},
    "softcap": {"softcap": 0.5},
    "sink": {"sink": SINK},
}


def problem():
    query = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    keys = [torch.randn(2, 2, n, 3, dtype=torch.float64) for n in (7, 4)]
    sources = [Source(keys[0], keys[0], torch.tensor([3, 7])), None, Source(keys[1], keys[1], mask=torch.rand(4) < 0.6)]
    return query, sources


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy", "mass"])
def test_equals_loops(name, reduce):
    query, sources = problem()
    looped = fuse_in_loops(query, sources, scale=3**-0.5, **OPTIONS[name])
    weights = looped.weights
    wanted = {
        None: weights,
        "heads": weights.mean(dim=1),
        "keys": weights.sum(dim=2),
        "entropy": torch.special.entr(weights).sum(dim=3),
        "mass": looped.mass,
    }[reduce]
    torch.testing.assert_close(associate(query, sources, reduce=reduce, **OPTIONS[name]), wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_topk_equals_loops(name):
    query, sources = problem()
    weights = fuse_in_loops(query, sources, scale=3**-0.5, **OPTIONS[name]).weights
    got, index = associate(query, sources, topk=6, **OPTIONS[name])
    for row, values, places in zip(
        weights.reshape(-1, 11).tolist(), got.reshape(-1, 6).tolist(), index.reshape(-1, 6).tolist(), strict=True
    ):
        ranked = sorted((j for j in range(11) if row[j] > 0), key=lambda j: -row[j])[:6]
        assert places == ranked + [-1] * (6 - len(ranked))
        assert all(math.isclose(v, row[j], rel_tol=1e-9) for v, j in zip(values, ranked, strict=False))
