"""`weighted_sum`: sums by given weights, forward and backward; what is skipped is not multiplied by zero."""

import itertools
from dataclasses import replace

import pytest
import torch

import crossmodal
from tests.accuracy import check
from tests.problems import LAYOUTS, Term, WeightedSum

PLAIN = WeightedSum(batch=2, heads=3, seqlen_q=17, seqlen_k=33, head_dim=20)
NAN = float("nan")

SHAPES = {  # batch, heads, seqlen_q, seqlen_k, head_dim
    "usual": (2, 2, 77, 197, 64),
    "one query": (3, 2, 1, 197, 64),
    "several chunks of keys": (1, 2, 9, 1030, 16),
    "several panels of queries": (1, 1, 1100, 33, 16),
    "one of everything": (1, 1, 1, 1, 1),
    "very wide": (1, 1, 3, 9, 3001),
    "no sample": (0, 2, 3, 4, 5),
    "no head": (2, 0, 3, 4, 5),
    "no query": (2, 2, 0, 4, 5),
    "no key": (2, 2, 3, 0, 5),
    "no feature": (2, 2, 3, 4, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_is_as_accurate_as_torch(isa, dtype, name):
    batch, heads, seqlen_q, seqlen_k, head_dim = SHAPES[name]
    check(WeightedSum(dtype, batch, heads, seqlen_q, seqlen_k, head_dim))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["weights", "values", "dout"])
def test_operand_in_every_memory_layout_is_as_accurate_as_torch(isa, dtype, operand, layout):
    check(replace(PLAIN, dtype=dtype, **{f"{operand}_layout": layout}))


@pytest.mark.parametrize(
    "broadcast",
    list(itertools.product([False, True], repeat=4)),
    ids=lambda form: "".join("1" if one else "n" for one in form),
)
def test_mask_of_every_broadcast_form_is_as_accurate_as_torch(isa, broadcast):
    check(replace(PLAIN, lengths=torch.int64, mask=Term(torch.bool, broadcast, hides=0.3)))


def test_every_size_is_as_accurate_as_torch(isa, dtype):
    for n in (*range(1, 36), 63, 64, 65, 129, 255, 257):
        check(replace(PLAIN, dtype=dtype, batch=1, heads=1, seqlen_k=n, head_dim=5))
        check(replace(PLAIN, dtype=dtype, batch=1, heads=1, seqlen_k=5, head_dim=n))


@pytest.mark.parametrize("wanted", ["weights", "values"])
def test_gradient_may_be_asked_for_one_argument(isa, wanted):
    check(replace(PLAIN, differentiated=frozenset({wanted})))


def test_identity_returns_the_values(isa, dtype):
    values = torch.randn(2, 3, 40, 9).to(dtype)
    assert torch.equal(crossmodal.weighted_sum(torch.eye(40, dtype=dtype), values), values)


def test_equals_a_product_of_matrices(isa):
    weights, values = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 7, 9)
    torch.testing.assert_close(crossmodal.weighted_sum(weights, values), weights @ values)


def test_weights_of_attention_and_their_values_give_attention(isa):
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 70, 8), torch.randn(2, 3, 70, 6)
    weights = crossmodal.associate(query, key)
    torch.testing.assert_close(crossmodal.weighted_sum(weights, value), crossmodal.attention(query, key, value))


@pytest.mark.parametrize(
    ("weights_shape", "values_shape"),
    [
        ((5, 7), (7, 9)),
        ((3, 5, 7), (7, 9)),
        ((5, 7), (2, 3, 7, 9)),
        ((2, 1, 5, 7), (3, 7, 9)),
        ((2, 2, 3, 5, 7), (2, 2, 3, 7, 9)),
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_and_gradients_keep_their_shape(weights_shape, values_shape):
    leaves = [torch.randn(shape, requires_grad=True) for shape in (weights_shape, values_shape)]
    got, wanted = crossmodal.weighted_sum(*leaves), leaves[0] @ leaves[1]
    torch.testing.assert_close(got, wanted)
    found = torch.autograd.grad(got.square().sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), leaves))


def test_row_of_skipped_keys_is_zero(isa, dtype):
    weights, values = torch.randn(1, 1, 5, 7).to(dtype), torch.randn(1, 1, 7, 9).to(dtype)
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    assert (crossmodal.weighted_sum(weights, values, mask=mask)[0, 0, 2] == 0).all()


def test_dout_of_a_row_of_skipped_keys_is_ignored(isa, dtype):
    weights, values = (torch.randn(1, 1, *s).to(dtype).requires_grad_() for s in ((5, 7), (7, 9)))
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    out = crossmodal.weighted_sum(weights, values, mask=mask)
    dout = torch.randn_like(out)
    clean = torch.autograd.grad(out, (weights, values), dout, retain_graph=True)
    dout[0, 0, 2] = NAN
    for got, wanted in zip(torch.autograd.grad(out, (weights, values), dout), clean, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("form", ["per key", "dense"])
def test_keys_skipped_for_every_query_may_be_nan(isa, dtype, form):
    weights, values = torch.randn(1, 1, 5, 70).to(dtype), torch.randn(1, 1, 70, 9).to(dtype)
    keep = torch.arange(70) % 3 != 1
    mask = keep if form == "per key" else keep.expand(5, 70).contiguous()
    clean = crossmodal.weighted_sum(weights, values, mask=mask)
    weights[..., ~keep], values[:, :, ~keep] = NAN, NAN
    assert torch.equal(crossmodal.weighted_sum(weights, values, mask=mask), clean)


def test_skipped_weight_may_be_nan(isa, dtype):
    weights, values = torch.randn(1, 1, 5, 7).to(dtype), torch.randn(1, 1, 7, 9).to(dtype)
    mask = torch.rand(5, 7) < 0.6
    clean = crossmodal.weighted_sum(weights, values, mask=mask)
    poisoned = weights.masked_fill(~mask, NAN)
    assert torch.equal(crossmodal.weighted_sum(poisoned, values, mask=mask), clean)


def test_visible_nan_is_not_lost(isa, dtype):
    weights, values = torch.randn(1, 1, 5, 7).to(dtype), torch.randn(1, 1, 7, 9).to(dtype)
    values[0, 0, 3, 4] = NAN
    assert crossmodal.weighted_sum(weights, values).isnan()[..., 4].all()


def test_nan_reaches_the_queries_that_see_it_and_no_other(isa, dtype, device):
    """Values in forward, dout in the gradient of values; whatever else the others see together."""
    if device == "cpu":
        pytest.skip("a CPU's kernels multiply what some queries skip by zero")
    weights, values, dout = (torch.randn(1, 2, *s).to(dtype) for s in ((21, 90), (90, 9), (21, 9)))
    mask = torch.rand(1, 2, 21, 90) < 0.6
    mask[:, :, 3, 5], mask[:, :, 4, 5], mask[:, :, 4, 6] = True, False, True

    def results(weights, values, dout):
        weights, values = weights.clone().requires_grad_(), values.clone().requires_grad_()
        out = crossmodal.weighted_sum(weights, values, mask=mask)
        return out.detach(), torch.autograd.grad(out, values, dout)[0]

    clean_out, clean_dvalues = results(weights, values, dout)
    for poison in (NAN, float("inf")):
        poisoned, poisoned_dout = values.clone(), dout.clone()
        poisoned[:, :, 5, 2], poisoned_dout[:, :, 4, 7] = poison, poison
        out, dvalues = results(weights, poisoned, poisoned_dout)
        for got, clean, sees, column in (
            (out, clean_out, mask[..., 5], 2),
            (dvalues, clean_dvalues, mask[:, :, 4], 7),
        ):
            assert not got[..., column][sees].isfinite().any()
            got[..., column][sees], clean[..., column][sees] = 0, 0
            assert torch.equal(got, clean)


def test_gradient_of_a_skipped_weight_is_zero_whatever_dout(isa, dtype):
    weights, values = torch.randn(2, 1, 5, 90).to(dtype).requires_grad_(), torch.randn(2, 1, 90, 9).to(dtype)
    mask = torch.rand(5, 90) < 0.6
    out = crossmodal.weighted_sum(weights, values, lengths=torch.tensor([13, 90]), mask=mask)
    (dweights,) = torch.autograd.grad(out, weights, torch.full_like(out, NAN))
    sees = mask.expand(2, 1, 5, 90).clone()
    sees[0, ..., 13:] = False
    assert torch.equal(dweights.isnan(), sees)
    assert (dweights[~sees] == 0).all()
