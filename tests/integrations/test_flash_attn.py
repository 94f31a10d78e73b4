"""flash-attn's functions: its layout, its lower-right alignment and its names, against formulas written out."""

import inspect

import pytest
import torch

from crossmodal.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func

SHAPES = {"as many keys": (5, 5), "more keys": (5, 9), "fewer keys": (9, 5)}
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (2, 1)},
    "causal window": {"causal": True, "window_size": (2, -1)},
    "scale": {"softmax_scale": 0.7},
    "softcap": {"softcap": 1.5},
}


def formula(q, k, v, causal=False, window_size=(-1, -1), softmax_scale=None, softcap=0.0, alibi=None):
    """(seqlen_q, num_heads, head_dim) of one sample, in float64: output and lse."""
    q, k, v = (t.double().transpose(0, 1) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[0] // t.shape[0], 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * (q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    place = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    ahead = torch.arange(k.shape[1]) - place
    if alibi is not None:
        scores = scores - alibi.double()[:, None, None] * ahead.abs()
    left, right = window_size
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    hidden |= (ahead > 0) if causal else False
    hidden |= (ahead > right) if right >= 0 else False
    hidden |= (ahead < -left) if left >= 0 else False
    scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ v).transpose(0, 1), scores.logsumexp(-1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_its_formula(shape, options):
    seqlen_q, seqlen_k = SHAPES[shape]
    q, k, v = torch.randn(2, seqlen_q, 4, 8), torch.randn(2, seqlen_k, 2, 8), torch.randn(2, seqlen_k, 2, 6)
    out, lse, nothing = flash_attn_func(q, k, v, **OPTIONS[options], return_attn_probs=True)
    assert nothing is None and torch.equal(flash_attn_func(q, k, v, **OPTIONS[options]), out)
    for b in range(2):
        wanted, its_lse = formula(q[b], k[b], v[b], **OPTIONS[options])
        torch.testing.assert_close(out[b].double(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse[b].double(), its_lse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_packed_sequences_are_their_formula(options):
    lengths_q, lengths_k = (3, 0, 7), (5, 4, 4)
    q, k, v = torch.randn(10, 4, 8), torch.randn(13, 2, 8), torch.randn(13, 2, 6)
    ends_q, ends_k = (torch.tensor([0, *n]).cumsum(0).int() for n in (lengths_q, lengths_k))
    arguments = (q, k, v, ends_q, ends_k, 7, 5)
    out, lse, nothing = flash_attn_varlen_func(*arguments, **OPTIONS[options], return_attn_probs=True)
    assert nothing is None and torch.equal(flash_attn_varlen_func(*arguments, **OPTIONS[options]), out)
    parts = zip(*(t.split(n) for t, n in ((q, lengths_q), (k, lengths_k), (v, lengths_k))), strict=True)
    wanted, its_lse = zip(*(formula(*part, **OPTIONS[options]) for part in parts), strict=True)
    torch.testing.assert_close(out.double(), torch.cat(wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), torch.cat(its_lse, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_alibi(batch):
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 4, 8)
    slopes = torch.rand(2, 4) if batch else torch.rand(4)
    out = flash_attn_func(q, k, k, alibi_slopes=slopes, causal=True)
    for b in range(2):
        wanted, _ = formula(q[b], k[b], k[b], causal=True, alibi=slopes[b] if batch else slopes)
        torch.testing.assert_close(out[b].double(), wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_q_k_and_v():
    q, k, v = (torch.randn(2, 5, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    torch.autograd.gradcheck(lambda *x: flash_attn_func(*x, causal=True), (q, k, v), fast_mode=True)


@pytest.mark.parametrize("name", ["alibi_slopes", "block_table"])
def test_what_is_not_taken_is_named(name):
    q, ends = torch.randn(5, 4, 8), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=f"{name} must be None for packed sequences, got Tensor"):
        flash_attn_varlen_func(q, q, q, ends, ends, 5, 5, **{name: torch.zeros(4)})


def test_arguments_are_flash_attns_in_its_order():
    """As flash-attn 2.8 documents them."""
    own = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs".split()
    ends = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k".split()
    assert list(inspect.signature(flash_attn_func).parameters) == ["q", "k", "v", *own]
    assert list(inspect.signature(flash_attn_varlen_func).parameters) == ["q", "k", "v", *ends, *own, "block_table"]
