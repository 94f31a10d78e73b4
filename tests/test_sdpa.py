"""`attention` stands in the place of scaled_dot_product_attention, wherever that is defined."""

import pytest
import torch
import torch.nn.functional as F

import crossmodal

SHAPES = {
    "2-D": ((5, 8), (7, 8), (7, 8)),
    "3-D": ((6, 5, 8), (6, 7, 8), (6, 7, 8)),
    "4-D": ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)),
    "5-D": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
    "head_dim_v": ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)),
    "broadcast batch": ((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)),
    "broadcast heads": ((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 8)),
    "broadcast query": ((1, 1, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_equals_sdpa(name, options):
    q, k, v = (torch.randn(shape) for shape in SHAPES[name])
    torch.testing.assert_close(
        crossmodal.attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options)
    )


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 5, 7), (1, 3, 1, 7), (2, 3, 5, 7), (1, 1, 5, 1)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_equals_sdpa_with_a_mask(shape, kind):
    q, k, v = (torch.randn(shape) for shape in SHAPES["4-D"])
    mask = torch.randn(shape) if kind == "float" else torch.rand(shape) < 0.7
    if kind == "bool":
        mask[..., 0] = True  # SDPA's result for a query that sees nothing is another matter
    torch.testing.assert_close(
        crossmodal.attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    )


def test_two_dimensional_mask_is_queries_by_keys():
    """Also where batch equals seqlen_q: it is never (batch, seqlen_k)."""
    q, k = torch.randn(5, 3, 5, 8), torch.randn(5, 3, 7, 8)
    mask = torch.rand(5, 7) < 0.5
    mask[:, 0] = True
    torch.testing.assert_close(crossmodal.attention(q, k, k, mask), F.scaled_dot_product_attention(q, k, k, mask))


def test_positional_arguments_are_sdpas():
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    arguments = (None, 0.0, True, 0.5, True)
    sdpa = F.scaled_dot_product_attention(q, k, k, arguments[0], arguments[1], arguments[2], scale=0.5, enable_gqa=True)
    torch.testing.assert_close(crossmodal.attention(q, k, k, *arguments), sdpa)


@pytest.mark.parametrize("seqlen_k", [3, 5, 7])
@pytest.mark.parametrize("variant", ["causal_upper_left", "causal_lower_right"])
@pytest.mark.parametrize("beside", ["nothing", "lengths", "window", "causal"])
@pytest.mark.filterwarnings("ignore:Lower right causal bias")
def test_causal_biases_of_torch_are_their_triangles(variant, seqlen_k, beside):
    """Of their own sizes, also where lengths would move a diagonal of ours."""
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, seqlen_k, 8)
    bias = getattr(torch.nn.attention.bias, variant)(5, seqlen_k)
    options = {
        "nothing": {},
        "lengths": {"key_lengths": torch.tensor([seqlen_k, 2]), "causal_align": "lower_right"},
        "window": {"window_size": (1, -1)},
        "causal": {"is_causal": True},
    }[beside]
    triangle = torch.ones(5, seqlen_k, dtype=torch.bool).tril(seqlen_k - 5 if variant == "causal_lower_right" else 0)
    with crossmodal.strict():
        got = crossmodal.attention(q, k, k, bias, **options)
    torch.testing.assert_close(got, crossmodal.attention(q, k, k, triangle, **options))
    torch.testing.assert_close(crossmodal.reference.attention(q, k, k, bias, **options), got)


def test_causal_bias_that_does_not_fit_is_named():
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    bias = torch.nn.attention.bias.causal_lower_right(4, 7)
    with pytest.raises(ValueError, match=r"attn_mask .*\(4, 7\)"):
        crossmodal.attention(q, k, k, bias)
    with pytest.raises(TypeError, match=r"mask must be .* got CausalBias"):
        crossmodal.fuse(q, [crossmodal.Source(k, k, mask=bias)])


def test_fuse_equals_attention_on_the_concatenation():
    q = torch.randn(2, 3, 5, 8)
    sources = [crossmodal.Source(torch.randn(2, 3, n, 8), torch.randn(2, 3, n, 6)) for n in (7, 600, 1)]
    key, value = (torch.cat([getattr(s, name) for s in sources], dim=2) for name in ("key", "value"))
    torch.testing.assert_close(crossmodal.fuse(q, sources).out, crossmodal.attention(q, key, value))


@pytest.mark.parametrize("order", ["heads_inside", "plain"])
def test_output_has_the_memory_order_of_query(order):
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    if order == "heads_inside":
        q = torch.randn(2, 5, 3, 8).transpose(1, 2)
    assert crossmodal.attention(q, k, k).stride() == q.stride()


@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 3, 5, 8), (0, 3, 7, 8), (0, 3, 7, 6)),
        ((2, 0, 5, 8), (2, 0, 7, 8), (2, 0, 7, 6)),
        ((2, 3, 0, 8), (2, 3, 7, 8), (2, 3, 7, 6)),
        ((2, 3, 5, 8), (2, 3, 0, 8), (2, 3, 0, 6)),
        ((2, 3, 5, 0), (2, 3, 7, 0), (2, 3, 7, 6)),
        ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 0)),
    ],
    ids=["batch", "heads", "queries", "keys", "head_dim", "head_dim_v"],
)
def test_any_dimension_may_be_zero(isa, shapes):
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    out = crossmodal.attention(q, k, v)
    assert out.shape == (*q.shape[:3], v.shape[3])
    torch.testing.assert_close(out, crossmodal.reference.attention(q, k, v))
    for leaf, gradient in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert gradient.shape == leaf.shape and torch.isfinite(gradient).all()
