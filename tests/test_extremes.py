"""Numbers at the edge of what a dtype holds: finite where torch is finite."""

import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import crossmodal
from crossmodal import reference

Q, K = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 70, 8)


@pytest.mark.parametrize("scale", [1e-300, 1e-46, 1e-39, 1e-30, 1e20, -1e20])
def test_scale_of_any_size_gives_what_sdpa_gives(isa, scale):
    got, wanted = crossmodal.attention(Q, K, K, scale=scale), scaled_dot_product_attention(Q, K, K, scale=scale)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("softcap", [1e31, 1e39, 1e300])
def test_cap_beyond_every_score_caps_nothing(isa, softcap):
    for m in (crossmodal, reference):
        assert torch.equal(m.attention(Q, K, K, softcap=softcap), m.attention(Q, K, K))


@pytest.mark.parametrize("factor", [1e4, 1e8, 1e15])
def test_large_scores_pick_the_largest(isa, factor):
    got = crossmodal.attention(Q * factor, K, K)
    assert torch.equal(got.argmax(-1), scaled_dot_product_attention(Q * factor, K, K).argmax(-1))
    assert torch.isfinite(got).all()


def test_products_beyond_float16_stay_finite_on_every_way():
    q = torch.full((1, 1, 1, 64), 40.0, dtype=torch.float16)
    k, v = torch.cat([q, -q], 2), torch.tensor([[[[1.0], [2.0]]]], dtype=torch.float16, requires_grad=True)
    for m in (crossmodal, reference):
        out = m.attention(q, k, v)
        assert out.item() == 1
        for again in (False, True):
            (gradient,) = torch.autograd.grad(out.sum(), v, retain_graph=True, create_graph=again)
            assert gradient.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("farthest", [sys.maxsize, 2**70])
def test_window_of_any_size_is_open(farthest):
    for m in (crossmodal, reference):
        assert torch.equal(m.attention(Q, K, K, window_size=(farthest, farthest)), m.attention(Q, K, K))


@pytest.mark.parametrize("name", ["fuse", "mass"])
def test_equal_weights_of_hundreds_of_keys_add_up(isa, name):
    """Rounding of equal terms goes in one direction; chains of additions are kept short."""
    key = torch.randn(1, 1, 4000, 1)
    sources = [crossmodal.Source(key, torch.ones_like(key)), crossmodal.Source(key[:, :, :33], key[:, :, :33] * 0)]
    errors = []
    for m in (crossmodal, reference):
        result = m.fuse(torch.zeros(1, 1, 3, 1), sources, return_mass=True)
        got = result.out if name == "fuse" else result.mass[..., 0]
        errors.append((got.double() - 4000 / 4033).abs().max())
    assert errors[0] <= 2 * errors[1] + 4 * torch.finfo(torch.float32).eps  # the rule of tests/tolerance.py


@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy", "mass"])
def test_sink_far_above_every_key_leaves_nothing(isa, reduce):
    lowest = torch.full((5, 70), torch.finfo(torch.float32).min)
    for m in (crossmodal, reference):
        assert (m.associate(Q, K, attn_mask=lowest, sink=torch.zeros(2), reduce=reduce) == 0).all()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("queries", [9, 80])
def test_query_of_minus_infinity_sees_nothing_and_sends_nothing_back(isa, queries, half):
    dtype = torch.bfloat16 if half else torch.float32
    q, k, v = torch.randn(1, 2, queries, 8), torch.rand(1, 2, 7, 8) + 0.1, torch.randn(1, 2, 7, 8)
    q, k, v, dout = (x.to(dtype) for x in (q, k, v, torch.randn(1, 2, queries, 8)))
    others = [i for i in range(queries) if i != 2]

    def run(q, dout):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = crossmodal.attention(*inputs)
        return out, *torch.autograd.grad(out, inputs, dout)

    wanted, dq, dk, dv = run(q[:, :, others], dout[:, :, others])
    q[:, :, 2], dout[:, :, 2] = -torch.inf, torch.nan
    out, *gradients = run(q, dout)
    assert not out[:, :, 2].any() and not gradients[0][:, :, 2].any()
    got = (out[:, :, others], gradients[0][:, :, others], *gradients[1:])
    for mine, expected in zip(got, (wanted, dq, dk, dv), strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("band", [{"is_causal": True}, {"window_size": (2, 2)}], ids=["causal", "window"])
@pytest.mark.parametrize("which", [1, 2], ids=["key", "value"])
def test_key_out_of_reach_of_every_query_may_be_nan(isa, dtype, band, which):
    inputs = [torch.randn(2, 2, n, 32, dtype=dtype) for n in (5, 10, 10)]
    inputs[which][:, :, 9] = torch.nan
    for x in inputs:
        x.requires_grad_()
    out = crossmodal.attention(*inputs, **band)
    dq, dk, dv = torch.autograd.grad(out, inputs, torch.randn_like(out))
    assert out.isfinite().all() and dq.isfinite().all()
    assert not dk[:, :, 9].any() and not dv[:, :, 9].any()
    assert dk.isfinite().all() and dv.isfinite().all()
