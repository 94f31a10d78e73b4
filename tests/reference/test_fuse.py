"""The reference of `fuse` against loops over single numbers."""

import pytest
import torch

from crossmodal import Source
from crossmodal.reference import attention, fuse
from tests.reference.loops import fuse_in_loops

SINK = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)

OPTIONS = {
    "nothing": {},
    "query_lengths": {"query_lengths": torch.tensor([5, 2])},
    "softcap": {"softcap": 0.5},
    "sink": {"sink": SINK},
    "scale": {"scale": 1.3},
}


def problem() -> tuple[torch.Tensor, list[Source | None]]:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    sources = [
        Source(randn(2, 4, 7, 3), randn(2, 4, 7, 2), torch.tensor([3, 7])),
        None,
        Source(randn(2, 2, 4, 3), randn(2, 2, 4, 2), mask=torch.rand(2, 1, 1, 4) < 0.6, bias=randn(1, 4, 5, 4)),
        Source(randn(2, 1, 1, 3), randn(2, 1, 1, 2), torch.tensor([0, 1])),
    ]
    return randn(2, 4, 5, 3), sources


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_loops(name):
    query, sources = problem()
    options = {"scale": 3**-0.5, **OPTIONS[name]}
    wanted = fuse_in_loops(query, sources, **options)
    got = fuse(query, sources, **OPTIONS[name], return_lse=True, return_mass=True)
    torch.testing.assert_close(tuple(got), wanted[:3])


def test_mass_and_the_sink_sum_to_one():
    query, sources = problem()
    result = fuse(query, sources, sink=SINK, return_lse=True, return_mass=True)
    share_of_sink = torch.exp(SINK[None, :, None] - result.lse)
    torch.testing.assert_close(result.mass.sum(-1) + share_of_sink, torch.ones_like(share_of_sink))


def test_equals_attention_on_the_concatenation():
    query, sources = problem()
    present = [s._replace(key=s.key.repeat_interleave(4 // s.key.shape[1], 1)) for s in sources if s is not None]
    present = [s._replace(value=s.value.repeat_interleave(4 // s.value.shape[1], 1)) for s in present]
    masks = []
    for s in present:
        n = s.key.shape[2]
        mask = torch.zeros(2, 4, 5, n, dtype=torch.float64) + (0 if s.bias is None else s.bias)
        if s.mask is not None:
            mask = mask.masked_fill(~s.mask, float("-inf"))
        if s.lengths is not None:
            mask = mask.masked_fill((torch.arange(n) >= s.lengths[:, None])[:, None, None], float("-inf"))
        masks.append(mask)
    wanted = attention(
        query,
        torch.cat([s.key for s in present], 2),
        torch.cat([s.value for s in present], 2),
        torch.cat(masks, 3),
        return_lse=True,
    )
    got = fuse(query, sources, return_lse=True)
    torch.testing.assert_close((got.out, got.lse), wanted)


def test_every_output_passes_gradcheck():
    query, sources = problem()
    query = query[:1, :, :3].requires_grad_()
    leaves, rebuilt = [query], []
    for s in sources:
        if s is None:
            rebuilt.append(None)
            continue
        fields = {n: getattr(s, n)[:1].requires_grad_() for n in ("key", "value")}
        leaves += fields.values()
        mask = None if s.mask is None else s.mask[:1]
        lengths = None if s.lengths is None else s.lengths[1:]
        rebuilt.append(Source(**fields, mask=mask, lengths=lengths))

    def outputs(*_):
        return tuple(fuse(query, rebuilt, return_lse=True, return_mass=True))

    assert torch.autograd.gradcheck(outputs, leaves)


def test_sink_of_minus_infinity_beside_no_modality_has_no_gradient():
    sink = torch.tensor([1.0, float("-inf")], requires_grad=True)
    lse = fuse(torch.randn(1, 2, 3, 4), [None], sink=sink, return_lse=True).lse
    assert torch.autograd.grad(lse, sink, torch.ones(1, 2, 3))[0].tolist() == [3.0, 0.0]
