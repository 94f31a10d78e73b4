"""`softmax_weighted_sum`: the softmax of given scores and the sum by it, forward and backward, in one operator."""

import itertools
from dataclasses import replace

import pytest
import torch

import crossmodal
from tests.accuracy import check
from tests.problems import LAYOUTS, Term, WeightedSum

PLAIN = WeightedSum(softmax=True, batch=2, heads=3, seqlen_q=17, seqlen_k=33, head_dim=20)
NAN, INF = float("nan"), float("inf")

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


def scores_and_values(dtype: torch.dtype = torch.float32, keys: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 5, keys).to(dtype), torch.randn(2, 3, keys, 9).to(dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_is_as_accurate_as_torch(isa, dtype, name):
    batch, heads, seqlen_q, seqlen_k, head_dim = SHAPES[name]
    check(WeightedSum(dtype, batch, heads, seqlen_q, seqlen_k, head_dim, softmax=True))


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


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_scale_of_either_sign_is_as_accurate_as_torch(isa, dtype, scale):
    check(replace(PLAIN, dtype=dtype, scale=scale, hides=0.3))


def test_large_scores_are_as_accurate_as_torch(isa, dtype):
    check(replace(PLAIN, dtype=dtype, magnitude=100.0))


@pytest.mark.parametrize("lengths", [torch.int32, torch.int64], ids=str)
def test_lengths_of_either_dtype_are_as_accurate_as_torch(isa, dtype, lengths):
    check(replace(PLAIN, dtype=dtype, lengths=lengths))


@pytest.mark.parametrize("wanted", ["weights", "values"])
def test_gradient_may_be_asked_for_one_argument(isa, wanted):
    check(replace(PLAIN, differentiated=frozenset({wanted})))


def test_equals_softmax_and_a_product_of_matrices(isa):
    scores, values = scores_and_values()
    wanted = (1.5 * scores).softmax(-1) @ values
    torch.testing.assert_close(crossmodal.softmax_weighted_sum(scores, values, scale=1.5), wanted)


def test_equals_weighted_sum_of_the_softmax(isa):
    scores, values = scores_and_values(keys=70)
    lengths, mask = torch.tensor([70, 3]), torch.rand(2, 1, 5, 70) < 0.7
    within = torch.arange(70) < lengths[:, None, None, None]
    weights = scores.masked_fill(~(mask & within), -INF).softmax(-1)
    torch.testing.assert_close(
        crossmodal.softmax_weighted_sum(scores, values, lengths=lengths, mask=mask),
        crossmodal.weighted_sum(weights, values, lengths=lengths, mask=mask),
    )


def test_scores_of_attention_give_attention(isa):
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 70, 8), torch.randn(2, 3, 70, 6)
    got = crossmodal.softmax_weighted_sum(query @ key.transpose(2, 3), value, scale=0.3)
    torch.testing.assert_close(got, crossmodal.attention(query, key, value, scale=0.3))


@pytest.mark.parametrize(
    ("scores_shape", "values_shape"),
    [
        ((5, 7), (7, 9)),
        ((3, 5, 7), (7, 9)),
        ((5, 7), (2, 3, 7, 9)),
        ((2, 1, 5, 7), (3, 7, 9)),
        ((2, 2, 3, 5, 7), (2, 2, 3, 7, 9)),
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_and_gradients_keep_their_shape(scores_shape, values_shape):
    leaves = [torch.randn(shape, requires_grad=True) for shape in (scores_shape, values_shape)]
    got, wanted = crossmodal.softmax_weighted_sum(*leaves), leaves[0].softmax(-1) @ leaves[1]
    torch.testing.assert_close(got, wanted)
    found = torch.autograd.grad(got.square().sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(wanted.square().sum(), leaves))


@pytest.mark.parametrize("how", ["mask", "scores"])
def test_row_of_hidden_keys_is_zero_and_its_dout_ignored(isa, dtype, how):
    scores, values = scores_and_values(dtype)
    mask = None
    if how == "mask":
        mask = torch.ones(5, 7, dtype=torch.bool)
        mask[2] = False
    else:
        scores[:, :, 2] = -INF
    leaves = [scores.requires_grad_(), values.requires_grad_()]
    out = crossmodal.softmax_weighted_sum(*leaves, mask=mask)
    assert (out[:, :, 2] == 0).all()
    dout = torch.randn_like(out)
    clean = torch.autograd.grad(out, leaves, dout, retain_graph=True)
    dout[:, :, 2] = NAN
    for got, wanted in zip(torch.autograd.grad(out, leaves, dout), clean, strict=True):
        assert torch.equal(got, wanted)
    assert (clean[0][:, :, 2] == 0).all()


@pytest.mark.parametrize("form", ["lengths", "per key", "dense"])
def test_keys_hidden_from_every_query_may_be_nan(isa, dtype, form):
    scores, values = scores_and_values(dtype, keys=70)
    keep = torch.arange(70) < 40 if form == "lengths" else torch.arange(70) % 3 != 1
    options = {"mask": keep if form == "per key" else keep.expand(5, 70).contiguous()}
    if form == "lengths":
        options = {"lengths": torch.tensor([40, 40])}

    def run():
        leaves = [scores.detach().requires_grad_(), values.detach().requires_grad_()]
        out = crossmodal.softmax_weighted_sum(*leaves, **options)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    clean = run()
    scores[..., ~keep], values[:, :, ~keep] = NAN, NAN
    for got, wanted in zip(run(), clean, strict=True):
        assert torch.equal(got, wanted)


def test_hidden_score_may_be_nan(isa, dtype):
    scores, values = scores_and_values(dtype)
    mask = torch.rand(5, 7) < 0.6
    clean = crossmodal.softmax_weighted_sum(scores, values, mask=mask)
    poisoned = scores.masked_fill(~mask, NAN)
    assert torch.equal(crossmodal.softmax_weighted_sum(poisoned, values, mask=mask), clean)


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.0])
def test_score_of_minus_infinity_hides_under_any_scale(isa, dtype, scale):
    scores, values = scores_and_values(dtype)
    mask = torch.rand(2, 3, 5, 7) < 0.6
    got = crossmodal.softmax_weighted_sum(scores.masked_fill(~mask, -INF), values, scale=scale)
    assert torch.equal(got, crossmodal.softmax_weighted_sum(scores, values, mask=mask, scale=scale))


def test_gradient_of_a_hidden_score_is_zero(isa, dtype):
    scores, values = scores_and_values(dtype)
    mask = torch.rand(2, 3, 5, 7) < 0.6
    scores.requires_grad_()
    out = crossmodal.softmax_weighted_sum(scores, values, mask=mask)
    gradient = torch.autograd.grad(out.square().sum(), scores)[0]
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


@pytest.mark.parametrize("where", ["scores", "values"])
def test_visible_nan_is_not_lost(isa, dtype, where):
    scores, values = scores_and_values(dtype)
    {"scores": scores, "values": values}[where][0, 0, 3, 4] = NAN
    out = crossmodal.softmax_weighted_sum(scores, values)
    reached = out[0, 0, 3] if where == "scores" else out[0, 0, :, 4]
    assert reached.isnan().all() and torch.isfinite(out[1]).all()


def test_passes_gradcheck(isa):
    mask, lengths = torch.rand(6, 5) < 0.7, torch.tensor([3, 0])

    def weighted(s, x):
        return crossmodal.softmax_weighted_sum(s, x, lengths=lengths, mask=mask, scale=0.8)

    shapes = [(2, 2, 6, 5), (2, 1, 5, 3)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(weighted, leaves)
    assert torch.autograd.gradgradcheck(weighted, leaves)


@pytest.mark.filterwarnings("ignore")
def test_forward_mode_agrees_with_the_reference():
    scores, values = scores_and_values()
    tangent = torch.randn_like(scores)
    got, wanted = (
        torch.func.jvp(lambda s, m=m: m.softmax_weighted_sum(s, values, scale=0.8), (scores,), (tangent,))[1]
        for m in (crossmodal, crossmodal.reference)
    )
    torch.testing.assert_close(got, wanted)
    assert (got != 0).any()


def test_vmap_agrees_with_a_loop():
    scores, values = torch.randn(3, 2, 2, 6, 5), torch.randn(3, 2, 2, 5, 4)
    lengths = torch.tensor([[1, 5], [0, 3], [2, 2]])
    got = torch.func.vmap(lambda s, x, n: crossmodal.softmax_weighted_sum(s, x, lengths=n))(scores, values, lengths)
    calls = zip(scores, values, lengths, strict=True)
    wanted = torch.stack([crossmodal.softmax_weighted_sum(s, x, lengths=n) for s, x, n in calls])
    torch.testing.assert_close(got, wanted)


def test_autocast_runs_in_the_autocast_dtype():
    scores, values = scores_and_values()
    with torch.autocast("cpu", torch.bfloat16):
        assert crossmodal.softmax_weighted_sum(scores, values).dtype == torch.bfloat16
        assert crossmodal.softmax_weighted_sum(scores.double(), values.double()).dtype == torch.float64
