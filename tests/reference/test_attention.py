"""The reference against loops over single numbers, for each argument, and against SDPA where SDPA is defined."""

import pytest
import torch
import torch.nn.functional as F

from crossmodal import Source
from crossmodal.reference import attention
from tests.reference.loops import fuse_in_loops
from tests.tolerance import assert_as_accurate, eps_of

SINK = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
KEY_LENGTHS, QUERY_LENGTHS = torch.tensor([4, 7]), torch.tensor([5, 2])

OPTIONS = {
    "nothing": {},
    "scale": {"scale": -0.7},
    "causal": {"is_causal": True},
    "lower_right": {"is_causal": True, "causal_align": "lower_right"},
    "key_lengths": {"key_lengths": KEY_LENGTHS},
    "query_lengths": {"query_lengths": QUERY_LENGTHS},
    "lower_right with lengths": {
        "is_causal": True,
        "causal_align": "lower_right",
        "key_lengths": KEY_LENGTHS,
        "query_lengths": QUERY_LENGTHS,
    },
    "window": {"window_size": (1, 2)},
    "window to the left": {"window_size": (2, -1)},
    "window to the right": {"window_size": (-1, 0)},
    "causal window": {"is_causal": True, "window_size": (1, 3)},
    "window at lower_right": {"window_size": (1, 1), "causal_align": "lower_right", "key_lengths": KEY_LENGTHS},
    "softcap": {"softcap": 0.5},
    "sink": {"sink": SINK},
    "sink and lengths": {"sink": SINK, "key_lengths": torch.tensor([0, 7]), "query_lengths": QUERY_LENGTHS},
}


def inputs(heads_k: int = 4) -> list[torch.Tensor]:
    shapes = [(2, 4, 5, 3), (2, heads_k, 7, 3), (2, heads_k, 7, 2)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def in_loops(q, k, v, mask=None, key_lengths=None, scale=None, **options):
    source = Source(k, v, key_lengths, mask)
    return fuse_in_loops(q, [source], scale=3**-0.5 if scale is None else scale, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_loops(name):
    q, k, v = inputs()
    wanted = in_loops(q, k, v, **OPTIONS[name])
    torch.testing.assert_close(attention(q, k, v, **OPTIONS[name], return_lse=True), (wanted.out, wanted.lse))


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_query_attention_equals_loops(heads_k):
    q, k, v = inputs(heads_k)
    torch.testing.assert_close(attention(q, k, v, enable_gqa=True), in_loops(q, k, v).out)


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7), (1, 4, 5, 1), (4, 1, 7), (1,)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float", "-inf"])
def test_mask_equals_loops(kind, shape):
    q, k, v = inputs()
    mask = torch.rand(shape) < 0.6 if kind == "bool" else torch.randn(shape, dtype=torch.float64)
    if kind == "-inf":
        mask = mask.masked_fill(torch.rand(shape) < 0.4, float("-inf"))
    wanted = in_loops(q, k, v, mask)
    torch.testing.assert_close(attention(q, k, v, mask, return_lse=True), (wanted.out, wanted.lse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_is_as_accurate_as_sdpa(dtype, options):
    q, k, v = (t.to(dtype) for t in inputs())
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **options)
    sdpa = F.scaled_dot_product_attention(q, k, v, **options)
    assert_as_accurate("out", attention(q, k, v, **options), [sdpa], exact.numpy(), eps_of(dtype))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=str)
def test_gradients_equal_those_of_sdpa(options):
    leaves = [t.requires_grad_() for t in inputs()]
    mask = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    if options:
        ours, theirs = attention(*leaves, **options), F.scaled_dot_product_attention(*leaves, **options)
    else:
        ours, theirs = attention(*leaves, mask), F.scaled_dot_product_attention(*leaves, mask)
        leaves.append(mask)
    got, wanted = (torch.autograd.grad(out.square().sum(), leaves) for out in (ours, theirs))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", OPTIONS)
def test_passes_gradcheck(name):
    q, k, v = (t[:1, :, :3].requires_grad_() for t in inputs())
    options = {n: t[1:].clamp_max(3) if n.endswith("lengths") else t for n, t in OPTIONS[name].items()}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, **options), (q, k, v))


def test_sink_gets_a_gradient():
    q, k, v = inputs()
    sink = SINK.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention(q, k, v, sink=s, return_lse=True), (sink,))


def test_sink_of_zero_is_one_more_key_of_zeros():
    q, k, v = inputs()
    padded = [torch.cat([t, torch.zeros_like(t[:, :, :1])], dim=2) for t in (k, v)]
    torch.testing.assert_close(attention(q, k, v, sink=torch.zeros(4)), attention(q, *padded))


def test_query_that_sees_nothing_has_lse_of_the_sink():
    q, k, v = inputs()
    out, lse = attention(q, k, v, key_lengths=torch.tensor([0, 0]), sink=SINK, return_lse=True)
    assert (out == 0).all()
    torch.testing.assert_close(lse, SINK[None, :, None].expand(2, 4, 5))


def test_queries_beyond_their_length_are_zero_and_may_be_nan():
    q, k, v = inputs()
    clean = attention(q, k, v, query_lengths=QUERY_LENGTHS, return_lse=True)
    q[1, :, 2:] = float("nan")
    leaves = [t.requires_grad_() for t in (q, k, v)]
    got = attention(*leaves, query_lengths=QUERY_LENGTHS, return_lse=True)
    assert all(torch.equal(a, b) for a, b in zip(got, clean, strict=True))
    assert (got[0][1, :, 2:] == 0).all() and (got[1][1, :, 2:] == float("-inf")).all()
    dout = torch.randn_like(got[0])
    dout[1, :, 2:] = float("nan")
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(got[0], leaves, dout))


def test_dout_of_a_fully_masked_row_is_ignored():
    leaves = [t.requires_grad_() for t in inputs()]
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[1] = False
    out = attention(*leaves, mask)
    dout = torch.randn_like(out)
    dout[:, :, 1] = float("nan")
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, dout))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_lengths_hide_may_be_poison(poison):
    q, k, v = inputs()
    clean = attention(q, k, v, key_lengths=KEY_LENGTHS)
    k[0, :, 4:] = v[0, :, 4:] = poison
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = attention(*leaves, key_lengths=KEY_LENGTHS)
    assert torch.equal(out, clean)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), leaves))


def test_nan_key_reaches_no_query_that_does_not_see_it():
    q, k, v = inputs()
    k[:, :, 3] = float("nan")
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = attention(*leaves, is_causal=True)
    dq = torch.autograd.grad(out.sum(), leaves)[0]
    assert torch.isfinite(out[:, :, :3]).all() and torch.isfinite(dq[:, :, :3]).all()
    assert out[:, :, 3:].isnan().all()
