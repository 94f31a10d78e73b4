"""`associate`: what attended to what, all of it or in summary."""

import math

import numpy as np
import pytest
import torch

import crossmodal
from crossmodal import Source, reference
from tests.exact import ExactFusion, wider_than
from tests.tolerance import assert_as_accurate, eps_of

LENGTHS = torch.tensor([5, 33])


class Case:
    """Three modalities with lengths, a key mask and a dense bias, and the exact weights."""

    def __init__(self, dtype: torch.dtype, seqlen_q: int = 17, lengths: tuple[int, ...] = (33, 9, 21)) -> None:
        torch.manual_seed(0)
        self.query = torch.randn(2, 3, seqlen_q, 20).to(dtype)
        keys = [torch.randn(2, 3, n, 20).to(dtype) for n in lengths]
        mask = torch.rand(2, 1, 1, lengths[1]) < 0.6
        bias = torch.randn(1, 3, seqlen_q, lengths[2])
        self.sources = [
            Source(keys[0], keys[0], torch.tensor([5, lengths[0]])),
            None,
            Source(keys[1], keys[1], mask=mask),
            Source(keys[2], keys[2], bias=bias),
        ]
        self.exact = ExactFusion(self.query, self.sources, scale=20**-0.5, precision=wider_than(dtype))

    def check(self, wanted: np.ndarray, **options) -> None:
        got = crossmodal.associate(self.query, self.sources, **options)
        same_dtype = reference.associate(self.query, self.sources, **options)
        assert_as_accurate("associate", got, [same_dtype], wanted, eps_of(self.query.dtype, got.dtype))


@pytest.mark.parametrize("lengths", [(33, 9, 21), (600, 530, 1)], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("seqlen_q", [1, 17, 130])
def test_weights_are_as_accurate_as_torch(isa, dtype, seqlen_q, lengths):
    case = Case(dtype, seqlen_q, lengths)
    case.check(case.exact.weights)


@pytest.mark.parametrize("seqlen_q", [1, 17, 130])
def test_head_mean_is_as_accurate_as_torch(isa, dtype, seqlen_q):
    case = Case(dtype, seqlen_q)
    case.check(case.exact.weights.mean(axis=1), reduce="heads")


def test_total_that_a_key_received_is_as_accurate_as_torch(isa, dtype):
    case = Case(dtype)
    case.check(case.exact.weights.sum(axis=2), reduce="keys")


def test_mass_is_as_accurate_as_torch(isa, dtype):
    case = Case(dtype)
    case.check(case.exact.mass, reduce="mass")


def test_entropy_is_as_accurate_as_torch(isa, dtype):
    case = Case(dtype)
    weights = case.exact.weights
    case.check(-(weights * np.log(np.where(weights > 0, weights, 1))).sum(axis=3), reduce="entropy")


def test_entropy_of_equal_weights_is_the_logarithm_of_their_number():
    entropy = crossmodal.associate(torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 11, 4), reduce="entropy")
    torch.testing.assert_close(entropy, torch.full((1, 1, 2), math.log(11)))


def test_weights_are_float32_beside_bfloat16():
    query = torch.randn(1, 1, 2, 4, dtype=torch.bfloat16)
    assert crossmodal.associate(query, query).dtype == torch.float32


@pytest.mark.parametrize("k", [1, 4, 63, 100])
def test_topk_are_the_strongest_weights_strongest_first(isa, dtype, k):
    case = Case(dtype)
    got, index = crossmodal.associate(case.query, case.sources, topk=k)
    everything = crossmodal.associate(case.query, case.sources)
    strongest = everything.sort(dim=-1, descending=True).values[..., :k]
    strongest = torch.nn.functional.pad(strongest, (0, k - strongest.shape[-1]))
    assert torch.equal(got, strongest)
    found = index >= 0
    assert torch.equal(everything.gather(-1, index.clamp_min(0))[found], got[found])


def test_topk_names_each_key_once(isa):
    case = Case(torch.float32)
    _, index = crossmodal.associate(case.query, case.sources, topk=63)
    for row in index.reshape(-1, 63).tolist():
        named = [j for j in row if j >= 0]
        assert len(named) == len(set(named))


def test_topk_has_minus_one_where_fewer_keys_are_visible(isa):
    query, key = torch.randn(2, 1, 3, 8), torch.randn(2, 1, 7, 8)
    weights, index = crossmodal.associate(query, key, topk=5, key_lengths=torch.tensor([2, 0]))
    assert (index[0, ..., :2] >= 0).all() and (index[0, ..., :2] < 2).all()
    assert (index[0, ..., 2:] == -1).all() and (index[1] == -1).all()
    assert (weights[0, ..., 2:] == 0).all() and (weights[1] == 0).all()


def test_topk_of_equal_weights_keeps_the_order_of_the_keys(isa):
    _, index = crossmodal.associate(torch.zeros(1, 1, 2, 4), torch.randn(1, 1, 40, 4), topk=6)
    assert index.tolist() == [[[[0, 1, 2, 3, 4, 5]] * 2]]


def test_topk_counts_along_the_padded_concatenation(isa):
    """A length of 1 in the first modality does not move the second one's keys."""
    first, second = torch.zeros(1, 1, 7, 4), torch.zeros(1, 1, 3, 4)
    second[0, 0, 2] = 100
    sources = [Source(first, first, torch.tensor([1])), Source(second, second)]
    _, index = crossmodal.associate(torch.ones(1, 1, 1, 4), sources, topk=1)
    assert index.tolist() == [[[[9]]]]


def test_absent_modality_takes_no_columns():
    query, key = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 7, 4)
    there = crossmodal.associate(query, [Source(key, key)])
    assert torch.equal(crossmodal.associate(query, [None, Source(key, key), None]), there)


def test_rows_sum_to_one(isa, dtype):
    case = Case(dtype)
    total = crossmodal.associate(case.query, case.sources).double().sum(dim=-1)
    assert (total - 1).abs().max() <= 63 * (torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps)


def test_query_that_sees_nothing_attends_to_nothing(isa):
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 7, 8)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1] = False
    for options, dim in (({}, 2), ({"reduce": "heads"}, 1), ({"reduce": "entropy"}, 2), ({"reduce": "mass"}, 2)):
        result = crossmodal.associate(query, key, attn_mask=mask, **options)
        assert (result.select(dim, 1) == 0).all() and (result.select(dim, 0) != 0).any()


@pytest.mark.parametrize("reduce", [None, "heads"])
def test_what_is_hidden_may_be_nan(isa, dtype, reduce):
    query, key = torch.randn(2, 3, 6, 8).to(dtype), torch.randn(2, 3, 33, 8).to(dtype)
    clean = crossmodal.associate(query, key, key_lengths=LENGTHS, reduce=reduce)
    key = key.clone()
    key[0, :, 5:] = float("nan")
    assert torch.equal(crossmodal.associate(query, key, key_lengths=LENGTHS, reduce=reduce), clean)


def test_nan_key_stays_out_of_rows_that_do_not_see_it(isa):
    query, key = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 33, 8)
    mask = torch.ones(6, 33, dtype=torch.bool)
    mask[2, 7] = False
    clean = crossmodal.associate(query, key, attn_mask=mask)
    key[0, 0, 7] = float("nan")
    got = crossmodal.associate(query, key, attn_mask=mask)
    assert torch.equal(got[0, 0, 2], clean[0, 0, 2])
    assert got[0, 0, [0, 1, 3, 4, 5]].isnan().any(dim=-1).all()


@pytest.mark.parametrize("options", [{}, {"reduce": "heads"}, {"reduce": "mass"}, {"topk": 3}], ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8)], ids=str)
def test_leading_dimensions_are_those_of_the_reference(shape, options):
    query, key = torch.randn(shape), torch.randn(*shape[:-2], 7, 8)
    got, wanted = (m.associate(query, key, **options) for m in (crossmodal, reference))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "options", [{}, {"reduce": "heads"}, {"reduce": "keys"}, {"reduce": "mass"}, {"topk": 3}], ids=str
)
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 5, 7, 8), (2, 0, 5, 7, 8), (2, 3, 0, 7, 8), (2, 3, 5, 0, 8), (2, 3, 5, 7, 0)],
    ids=["batch", "heads", "queries", "keys", "head_dim"],
)
def test_any_dimension_may_be_zero(isa, shape, options):
    batch, heads, seqlen_q, seqlen_k, head_dim = shape
    query, key = torch.randn(batch, heads, seqlen_q, head_dim), torch.randn(batch, heads, seqlen_k, head_dim)
    got, wanted = (m.associate(query, key, **options) for m in (crossmodal, reference))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("options", [{}, {"reduce": "heads"}, {"topk": 3}], ids=str)
def test_without_any_modality_there_is_nothing(options):
    got, wanted = (m.associate(torch.randn(2, 3, 5, 8), [None, None], **options) for m in (crossmodal, reference))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy", "mass"])
def test_gradients_flow_to_query_key_and_bias(reduce):
    case = Case(torch.float32)
    query = case.query.requires_grad_()
    weights = crossmodal.associate(query, case.sources, reduce=reduce)
    assert (torch.autograd.grad(weights.square().sum(), query)[0] != 0).any()
