"""Few queries over few keys of several modalities, where kernels for short problems take over."""

from dataclasses import replace

import pytest
import torch

import crossmodal
from crossmodal import Source
from tests.accuracy import check
from tests.problems import Fusion, Modality

PAIR = Fusion(
    (Modality(16, torch.int64, key_layout="heads_inside"), None, Modality(25, torch.int32)),
    batch=3,
    heads=2,
    head_dim=12,
    head_dim_v=20,
    query_lengths=torch.int64,
    poisoned=True,
    asked=frozenset({"out", "lse"}),
)


@pytest.mark.parametrize("seqlen_q", [1, 2, 3, 4, 5, 12, 64])
@pytest.mark.parametrize("asked", [{"out", "lse"}, {"out", "mass"}], ids=["lse", "mass"])
def test_is_as_accurate_as_torch(isa, dtype, seqlen_q, asked):
    check(replace(PAIR, dtype=dtype, seqlen_q=seqlen_q, asked=frozenset(asked)))


@pytest.mark.parametrize("seqlen_q", [1, 3, 20])
def test_large_scores_are_rebuilt_as_they_were(isa, dtype, seqlen_q):
    """Backward forms the products of forward, whichever kernel of either runs."""
    check(replace(PAIR, dtype=dtype, seqlen_q=seqlen_q, magnitude=6.0, head_dim=32))


@pytest.mark.parametrize("seqlen_q", [2, 20])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_gradient_may_be_asked_for_one_argument(isa, dtype, seqlen_q, name):
    check(replace(PAIR, dtype=dtype, seqlen_q=seqlen_q, differentiated=frozenset({name})))


@pytest.mark.parametrize("seqlen_q", [2, 20])
def test_heads_may_be_shared(isa, dtype, seqlen_q):
    modalities = (Modality(16, torch.int64, heads_k=2), Modality(25, heads_k=4))
    check(replace(PAIR, dtype=dtype, seqlen_q=seqlen_q, modalities=modalities, heads=4))


@pytest.mark.parametrize("seqlen_q", [2, 4, 20])
def test_samples_of_a_batch_may_go_different_ways(isa, dtype, seqlen_q):
    """Lengths up to 64 keys, up to 256, and beyond."""
    modalities = (Modality(40, torch.int64), Modality(270, torch.int64))
    check(replace(PAIR, dtype=dtype, seqlen_q=seqlen_q, modalities=modalities, batch=7))


@pytest.mark.parametrize("seqlen_q", [2, 4, 20])
def test_what_else_is_asked_changes_no_bit(isa, dtype, seqlen_q):
    query = torch.randn(2, 2, seqlen_q, 12).to(dtype)
    sources = [Source(torch.randn(2, 2, n, 12).to(dtype), torch.randn(2, 2, n, 20).to(dtype)) for n in (16, 25, 11)]
    out = crossmodal.fuse(query, sources).out
    result = crossmodal.fuse(query, sources, return_lse=True, return_mass=True)
    assert torch.equal(out, result.out)
    for tensor in (query, *sources[0][:2]):
        tensor.requires_grad_()
    assert torch.equal(out, crossmodal.fuse(query, sources).out)


def test_one_mask_that_hides_nothing_is_none(isa):
    query, rows = torch.randn(2, 2, 5, 12), torch.randn(2, 2, 16, 12)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    found, wanted = (crossmodal.fuse(query, [Source(rows, rows, mask=m), Source(rows, rows)]).out for m in (mask, None))
    assert torch.equal(found, wanted)
    hidden = crossmodal.fuse(query, [Source(rows, rows, mask=~mask), Source(rows, rows)], return_mass=True).mass
    assert hidden[..., 0].eq(0).all()


def test_mass_of_what_sees_nothing_is_zero(isa):
    query, lengths = torch.randn(2, 1, 5, 12), torch.tensor([0, 3])
    sources = [Source(torch.randn(2, 1, n, 12), torch.randn(2, 1, n, 12), lengths) for n in (4, 7)]
    result = crossmodal.fuse(query, sources, query_lengths=torch.tensor([5, 2]), return_mass=True)
    assert result.mass[0].eq(0).all()
    assert result.mass[1, :, 2:].eq(0).all()
    torch.testing.assert_close(result.mass[1, :, :2].sum(-1), torch.ones(1, 2))
