"""`attention`: as accurate as torch, forward and backward, on every instruction set; and what its arguments say."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

import crossmodal
from tests.accuracy import check
from tests.problems import LAYOUTS, Fusion, Modality, Term

PLAIN = Fusion((Modality(33),), batch=2, heads=3, seqlen_q=17, head_dim=20, head_dim_v=12, as_attention=True)
BOTH = frozenset({"out", "lse"})
BROADCAST_FORMS = list(itertools.product([False, True], repeat=4))

# (batch, heads, seqlen_q, seqlen_k, head_dim, head_dim_v)
SHAPES = {
    "text over image": (2, 2, 77, 197, 64, 64),
    "one query": (3, 2, 1, 197, 64, 64),
    "few queries, several chunks of keys": (1, 2, 4, 1030, 16, 16),
    "several chunks of keys": (1, 2, 9, 1030, 16, 24),
    "several panels of queries": (1, 1, 1100, 33, 16, 16),
    "one key": (2, 2, 5, 1, 8, 8),
    "one of everything": (1, 1, 1, 1, 1, 1),
    "wide heads": (1, 1, 7, 40, 300, 129),
    "very wide heads": (1, 1, 3, 9, 3001, 1),
    "narrow heads": (2, 2, 30, 30, 1, 2),
}


def attention_of(shape: tuple[int, ...], **changes) -> Fusion:
    batch, heads, seqlen_q, seqlen_k, head_dim, head_dim_v = shape
    return replace(
        PLAIN,
        modalities=(Modality(seqlen_k),),
        batch=batch,
        heads=heads,
        seqlen_q=seqlen_q,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        asked=BOTH,
        **changes,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_is_as_accurate_as_torch(isa, dtype, name):
    check(attention_of(SHAPES[name], dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 2, 130, 530, 16, 16), (2, 1, 40, 9, 8, 8), (1, 1, 3, 600, 8, 8)], ids=str)
def test_causal_is_as_accurate_as_torch(isa, dtype, shape):
    check(attention_of(shape, dtype=dtype, is_causal=True))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("broadcast", BROADCAST_FORMS, ids=lambda form: "".join("1" if one else "n" for one in form))
def test_mask_of_every_broadcast_form_is_as_accurate_as_torch(isa, kind, broadcast):
    term = Term(getattr(torch, kind), broadcast, hides=0.3)
    check(replace(PLAIN, modalities=(Modality(33, mask=term),), asked=BOTH))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_in_every_memory_layout_is_as_accurate_as_torch(isa, layout):
    check(replace(PLAIN, modalities=(Modality(33, mask=Term(torch.float32, layout=layout, hides=0.3)),)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operand", ["query", "key", "value", "dout"])
def test_operand_in_every_memory_layout_is_as_accurate_as_torch(isa, dtype, operand, layout):
    if operand in ("query", "dout"):
        problem = replace(PLAIN, **{f"{operand}_layout": layout})
    else:
        problem = replace(PLAIN, modalities=(Modality(33, **{f"{operand}_layout": layout}),))
    check(replace(problem, dtype=dtype))


def test_every_head_dim_is_as_accurate_as_torch(isa, dtype):
    for head_dim in (*range(1, 36), 63, 64, 65, 127, 129, 255, 257):
        check(replace(PLAIN, dtype=dtype, batch=1, heads=1, head_dim=head_dim, head_dim_v=head_dim))


def test_every_number_of_keys_is_as_accurate_as_torch(isa, dtype):
    for seqlen_k in (*range(36), 63, 64, 65, 255, 256, 257, 511, 512, 513):
        modality = Modality(seqlen_k, lengths=torch.int64)
        check(replace(PLAIN, modalities=(modality,), dtype=dtype, batch=1, heads=1))


def test_every_number_of_queries_is_as_accurate_as_torch(isa, dtype):
    for seqlen_q in (*range(36), 63, 64, 65, 127, 129, 511, 512, 513, 516):
        check(replace(PLAIN, dtype=dtype, batch=1, heads=1, seqlen_q=seqlen_q))


def test_large_scores_are_as_accurate_as_torch(isa, dtype):
    # Scores reach +-80, where exp in float32 has left its range.
    check(replace(PLAIN, dtype=dtype, magnitude=4.5, asked=BOTH))


@pytest.mark.parametrize("seqlen_q", [2, 17], ids=["few_queries", "many_queries"])
@pytest.mark.parametrize("seqlen_k", [33, 700])
def test_rows_of_nothing_but_the_lowest_number_are_as_accurate_as_torch(isa, dtype, seqlen_q, seqlen_k):
    """finfo.min is a score, not a mask: all keys weigh the same, and so the gradients say."""
    term = Term(torch.float32, (True, True, True, False), lowest=1.0)
    check(replace(PLAIN, modalities=(Modality(seqlen_k, mask=term),), dtype=dtype, seqlen_q=seqlen_q))


def test_scale_of_zero_gives_the_mean_of_the_values(isa, dtype):
    q, k, v = (torch.randn(1, 2, 6, 8).to(dtype) for _ in range(3))
    out = crossmodal.attention(q, k, v, scale=0.0)
    mean = v.double().mean(dim=2, keepdim=True).expand(out.shape)
    assert (out.double() - mean).abs().max() <= torch.finfo(dtype).eps * v.double().abs().max()


def test_lse_is_the_natural_logarithm_of_the_number_of_equal_keys(isa):
    q, k = torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 11, 4)
    lse = crossmodal.attention(q, k, k, return_lse=True)[1]
    torch.testing.assert_close(lse, torch.full((1, 1, 2), math.log(11)))


def test_lse_is_float32_beside_bfloat16():
    q = torch.randn(1, 1, 2, 4, dtype=torch.bfloat16)
    out, lse = crossmodal.attention(q, q, q, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


def test_scale_is_one_over_the_root_of_head_dim():
    q, k, v = (torch.randn(1, 2, 6, 16) for _ in range(3))
    assert torch.equal(crossmodal.attention(q, k, v), crossmodal.attention(q, k, v, scale=0.25))


@pytest.mark.parametrize(
    "lengths", [torch.tensor([3, 7]).int(), torch.tensor([3, 9, 7])[::2]], ids=["int32", "strided"]
)
def test_lengths_may_be_int32_or_strided(isa, lengths):
    q, k = torch.randn(2, 2, 6, 8), torch.randn(2, 2, 7, 8)
    assert torch.equal(
        crossmodal.attention(q, k, k, key_lengths=lengths),
        crossmodal.attention(q, k, k, key_lengths=torch.tensor([3, 7])),
    )


@pytest.mark.parametrize("seqlen_q", [3, 20], ids=["few_queries", "many_queries"])
def test_lengths_mask_and_causal_intersect(isa, seqlen_q):
    q, k, v = (torch.randn(2, 2, n, 8) for n in (seqlen_q, 15, 15))
    lengths, mask = torch.tensor([4, 13]), torch.rand(2, 1, seqlen_q, 15) < 0.7
    together = mask & (torch.arange(15) < lengths[:, None])[:, None, None]
    together = together & torch.ones(seqlen_q, 15, dtype=torch.bool).tril()
    torch.testing.assert_close(
        crossmodal.attention(q, k, v, mask, is_causal=True, key_lengths=lengths),
        crossmodal.attention(q, k, v, together),
    )


@pytest.mark.parametrize("seqlen_k", [15, 200], ids=["short", "long"])
def test_hidden_keys_may_as_well_not_be_there(isa, seqlen_k):
    q, k, v = torch.randn(1, 2, 20, 8), torch.randn(1, 2, seqlen_k, 8), torch.randn(1, 2, seqlen_k, 8)
    keep = torch.rand(seqlen_k) < 0.5
    keep[:70:7] = True
    got, wanted = crossmodal.attention(q, k, v, keep), crossmodal.attention(q, k[:, :, keep], v[:, :, keep])
    if seqlen_k == 200:
        assert torch.equal(got, wanted)
    else:  # without a mask a short problem has a kernel of its own
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("mask_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_mask_of_any_float_dtype_keeps_it_in_its_gradient(dtype, mask_dtype):
    q, k, v = (torch.randn(1, 2, 6, 8).to(dtype) for _ in range(3))
    mask = torch.randn(6, 6, dtype=torch.float64).to(mask_dtype).requires_grad_()
    gradients = [
        torch.autograd.grad(m.attention(q, k, v, mask).double().square().sum(), mask)[0]
        for m in (crossmodal, crossmodal.reference)
    ]
    assert gradients[0].dtype == mask_dtype
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(mask_dtype).eps)
    assert (gradients[0] - gradients[1]).abs().max() <= 8 * coarsest * gradients[1].abs().max()


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8)], ids=str)
def test_lse_has_the_leading_dimensions_of_query(shape):
    q = torch.randn(shape)
    out, lse = crossmodal.attention(q, q, q, return_lse=True)
    assert out.shape == q.shape and lse.shape == q.shape[:-1]


@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [
        ((5, 8), (1, 5)),
        ((3, 5, 8), (3, 1, 5)),
        ((2, 3, 5, 8), (2, 1, 1, 5)),
        ((2, 2, 3, 5, 8), (2, 2, 1, 1, 5)),
    ],
    ids=str,
)
def test_lengths_count_the_leading_dimensions_before_heads(shape, mask_shape):
    q = torch.randn(shape)
    lengths = torch.arange(math.prod(mask_shape[:-1])) + 1
    mask = (torch.arange(5) < lengths[:, None]).reshape(mask_shape)
    torch.testing.assert_close(crossmodal.attention(q, q, q, key_lengths=lengths), crossmodal.attention(q, q, q, mask))


def test_gradient_of_what_broadcasts_has_its_shape():
    q, k, v = (torch.randn(s, requires_grad=True) for s in ((2, 3, 5, 8), (1, 3, 7, 8), (2, 1, 7, 8)))
    out = crossmodal.attention(q, k, v)
    wide = [t.detach().expand(2, 3, *t.shape[2:]).contiguous().requires_grad_() for t in (q, k, v)]
    wanted = torch.autograd.grad(crossmodal.attention(*wide).square().sum(), wide)
    for got, full, leaf in zip(torch.autograd.grad(out.square().sum(), (q, k, v)), wanted, (q, k, v), strict=True):
        torch.testing.assert_close(got, full.sum_to_size(leaf.shape))


def test_one_tensor_in_three_slots_gets_the_sum_of_three_gradients():
    x = torch.randn(1, 2, 6, 8, requires_grad=True)
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    got = torch.autograd.grad(crossmodal.attention(x, x, x).square().sum(), x)[0]
    wanted = torch.autograd.grad(crossmodal.attention(*copies).square().sum(), copies)
    torch.testing.assert_close(got, sum(wanted))


def test_calls_under_no_grad_and_with_gradients_give_the_same_bits(isa, dtype):
    q, k, v = (torch.randn(2, 2, 30, 16).to(dtype).requires_grad_() for _ in range(3))
    with torch.no_grad():
        out = crossmodal.attention(q, k, v)
    assert torch.equal(crossmodal.attention(q, k, v), out) and not out.requires_grad


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"window_size": (2, 1)}, {"query_lengths": torch.tensor([9, 4])}],
    ids=["all", "causal", "window", "query_lengths"],
)
def test_gradient_of_a_mask_without_features_is_that_of_the_reference(options):
    query, key = torch.empty(2, 3, 9, 0), torch.empty(2, 3, 11, 0)
    value, mask = torch.randn(2, 3, 11, 5), torch.randn(2, 3, 9, 11, requires_grad=True)
    dout = torch.randn(2, 3, 9, 5)
    found, wanted = (
        torch.autograd.grad(attention(query, key, value, mask, **options), mask, dout)[0]
        for attention in (crossmodal.attention, crossmodal.reference.attention)
    )
    torch.testing.assert_close(found, wanted)
