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


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [False, True], ids=["", "slopes of each sequence"])
def test_alibi_of_packed_sequences(batch, options):
    """Distances count by the lengths of each sequence; a row that belongs to none gives 0."""
    lengths_q, lengths_k = (3, 0, 7), (5, 4, 4)
    q, k, v = (torch.randn(n, h, d, requires_grad=True) for n, h, d in ((12, 4, 8), (13, 2, 8), (13, 2, 6)))
    ends_q, ends_k = (torch.tensor([0, *n]).cumsum(0).int() for n in (lengths_q, lengths_k))
    slopes = torch.rand(3, 4) if batch else torch.rand(4)
    arguments, keywords = (q, k, v, ends_q, ends_k, 7, 5), {**OPTIONS[options], "alibi_slopes": slopes}
    out, lse, nothing = flash_attn_varlen_func(*arguments, **keywords, return_attn_probs=True)
    assert nothing is None and torch.equal(flash_attn_varlen_func(*arguments, **keywords), out)
    parts = zip(*(t.split(n) for t, n in ((q[:10], lengths_q), (k, lengths_k), (v, lengths_k))), strict=True)
    of_sample = slopes if batch else slopes.expand(3, 4)
    found = [formula(*part, **OPTIONS[options], alibi=s) for part, s in zip(parts, of_sample, strict=True)]
    wanted, its_lse = (torch.cat(t, d) for t, d in zip(zip(*found, strict=True), (0, -1), strict=True))
    torch.testing.assert_close(out[:10].double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse[:, :10].double(), its_lse, rtol=1e-4, atol=1e-5)
    assert not out[10:].any() and (lse[:, 10:] == -torch.inf).all()
    dout = torch.randn(12, 4, 6)
    gradients = torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(wanted, (q, k, v), dout[:10].double())
    for got, there in zip(*gradients, strict=True):
        torch.testing.assert_close(got, there, rtol=1e-4, atol=1e-5)


def test_alibi_of_packed_sequences_compiles_and_hides_what_belongs_to_no_sequence():
    q, k = torch.randn(8, 4, 8), torch.randn(9, 4, 8)
    ends_q, ends_k = torch.tensor([0, 2, 6], dtype=torch.int32), torch.tensor([0, 4, 7], dtype=torch.int32)
    slopes = torch.rand(4)

    def call(q, k):
        return flash_attn_varlen_func(q, k, k, ends_q, ends_k, 4, 4, causal=True, alibi_slopes=slopes)

    wanted = call(q, k)
    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k), wanted)
    q[6:] = k[7:] = torch.nan
    assert torch.equal(call(q, k), wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_slopes_that_do_not_fit_are_named(packed):
    q, ends = torch.randn(5, 4, 8), torch.tensor([0, 5], dtype=torch.int32)
    message = r"alibi_slopes must have shape \(num_heads,\) = \(4,\) or \(batch, num_heads\) = \(1, 4\), got \(3,\)"
    with pytest.raises(ValueError, match=message):
        if packed:
            flash_attn_varlen_func(q, q, q, ends, ends, 5, 5, alibi_slopes=torch.zeros(3))
        else:
            flash_attn_func(q[None], q[None], q[None], alibi_slopes=torch.zeros(3))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_tensors_of_other_dimensions_are_named(name):
    tensors = dict.fromkeys("qkv", torch.randn(2, 5, 4, 8))
    layout = r"\(batch, seqlen, num_heads, head_dim\)"
    with pytest.raises(ValueError, match=rf"{name} must be {layout}, got shape \(5, 4, 8\)"):
        flash_attn_func(**{**tensors, name: torch.randn(5, 4, 8)})
    with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got NoneType"):
        flash_attn_func(**{**tensors, name: None})


def test_what_is_not_taken_is_named():
    q, ends = torch.randn(5, 4, 8), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="block_table must be None, got Tensor"):
        flash_attn_varlen_func(q, q, q, ends, ends, 5, 5, block_table=torch.zeros(4))


@pytest.mark.parametrize("way", ["padded", "packed", "packed with alibi"])
def test_gradients_may_be_differentiated_again(way):
    """Those of each argument, by kernels where the CPU has them."""
    q, k, v = (torch.randn(1, n, 2, 4, dtype=torch.float64, requires_grad=True) for n in (4, 6, 6))
    ends = [torch.tensor(n, dtype=torch.int32) for n in ([0, 1, 4], [0, 4, 6])]

    def call(q, k, v):
        if way == "padded":
            return flash_attn_func(q, k, v, causal=True, softcap=2.0)
        slopes = torch.tensor([0.5, 0.1]) if way == "packed with alibi" else None
        return flash_attn_varlen_func(q[0], k[0], v[0], *ends, 3, 4, causal=True, softcap=2.0, alibi_slopes=slopes)

    torch.autograd.gradgradcheck(call, (q, k, v), fast_mode=True)


def test_arguments_are_flash_attns_in_its_order():
    """As flash-attn 2.8 documents them."""
    own = "dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs".split()
    ends = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k".split()
    assert list(inspect.signature(flash_attn_func).parameters) == ["q", "k", "v", *own]
    assert list(inspect.signature(flash_attn_varlen_func).parameters) == ["q", "k", "v", *ends, *own, "block_table"]
