"""Learned queries over tokens that are not projected: the same answers as with projections, and only where they pay."""

import unittest.mock

import pytest
import torch
from torch.nn.utils import parametrizations, prune

from crossmodal.blocks import CommonPool
from crossmodal.blocks.absorbed import absorbed_queries
from crossmodal.blocks.operators import use_implementation
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.fusion.base import Form
from crossmodal.models.fusion.queries import QueryFusion
from crossmodal.nn import _absorbed

WIDTH, HEADS = 32, 2


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(_absorbed, "_WORTHWHILE", 0)


def tokens(length, *lengths, dtype=torch.float64):
    """With NaN for padding, which nobody may read."""
    features = torch.randn(len(lengths), length, WIDTH, dtype=dtype)
    for row, real in zip(features, lengths, strict=True):
        row[real:] = torch.nan
    return EncoderOutput(features.requires_grad_(), torch.tensor(lengths))


def both(module, run, leaves):
    """What run() gives, and its gradients, absorbed and by projections that torch computes."""
    results = []
    for implementation in ("fused", "reference"):
        use_implementation(module, implementation)
        with unittest.mock.patch.object(torch.nn.Linear, "forward", autospec=True, side_effect=_linear) as projections:
            out = run()
        assert (projections.call_count > 0) == (implementation == "reference")
        upstream = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    return results


_linear = torch.nn.Linear.forward


@pytest.mark.parametrize("queries", [1, 3, 4])
def test_a_pool_is_that_of_projections(queries):
    pool, (features, lengths) = CommonPool(WIDTH, HEADS, queries).double(), tokens(9, 9, 0, 3)
    clean = features.detach().nan_to_num().requires_grad_()  # projections read padding
    absorbed = both(pool, lambda: pool(features, lengths), [features, *pool.parameters()])[0]
    wanted = both(pool, lambda: pool(clean, lengths), [clean, *pool.parameters()])[1]
    for one, other in zip(absorbed, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert (absorbed[0][1] == 0).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_queries_over_sets_of_modalities_are_those_of_projections(biased, missing):
    fusion = QueryFusion(Form(modalities=3, width=WIDTH, num_heads=HEADS, num_queries=2)).double()
    given = [tokens(5, 5, 5, 0), None if missing else tokens(7, 7, 7, 7), tokens(4, 2, 0, 0)]
    given = [one and one._replace(features=one.features.detach().nan_to_num().requires_grad_()) for one in given]
    biases = [torch.randn(3, dtype=torch.float64, requires_grad=True) if biased and one else None for one in given]
    sets = torch.tensor([[True] * 3, [True, False, False], [False, True, False], [False, True, True], [False] * 3])
    leaves = [
        *fusion.parameters(),
        *(one.features for one in given if one),
        *(bias for bias in biases if bias is not None),
    ]
    for run in (lambda: fusion.over_sets(given, biases, sets), lambda: fusion(given, biases).features):
        absorbed, wanted = both(fusion, run, leaves)
        for one, other in zip(absorbed, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_mass_is_that_of_projections():
    fusion = QueryFusion(Form(modalities=2, width=WIDTH, num_heads=HEADS, num_queries=3)).double()
    given = [tokens(8, 8, 0, 0), tokens(9, 9, 7, 0)]
    given = [one._replace(features=one.features.detach().nan_to_num()) for one in given]
    masses = []
    for implementation in ("fused", "reference"):
        fusion.implementation = implementation
        masses.append(fusion(given, [None, None], return_mass=True).mass)
    assert masses[0].shape == (3, HEADS, 3, 2)
    torch.testing.assert_close(*masses)


def test_second_derivatives_are_those_of_differences():
    pool, (features, lengths) = (
        CommonPool(4, 1).double(),
        (torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([3, 0, 2])),
    )
    assert absorbed_queries(pool).pay(features)
    assert torch.autograd.gradgradcheck(lambda x: pool(x, lengths), (features.requires_grad_(),))


def test_single_precision_is_as_accurate_as_with_projections():
    pool = CommonPool(48, HEADS, 4)
    features, lengths = torch.randn(64, 25, 48), torch.full((64,), 25)
    exact = CommonPool(48, HEADS, 4, "reference").double()
    exact.load_state_dict(pool.state_dict())
    wanted, errors = exact(features.double(), lengths), []
    for implementation in ("fused", "reference"):
        pool.implementation = implementation
        errors.append((pool(features, lengths) - wanted).abs().max())
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize(
    ("change", "pays"),
    [
        (lambda pool: None, True),
        (lambda pool: setattr(pool, "implementation", "reference"), False),
        (lambda pool: setattr(pool, "queries", torch.nn.Parameter(torch.randn(5, WIDTH))), False),
        (lambda pool: pool.to_key.register_forward_hook(lambda *_: None), False),
        (lambda pool: prune.l1_unstructured(pool.to_value, "weight", 3), False),
        (lambda pool: parametrizations.orthogonal(pool.to_key), False),
        (lambda pool: setattr(pool, "to_value", torch.nn.Sequential(pool.to_value)), False),
        (lambda pool: pool.to(torch.bfloat16), False),  # tokens are not
    ],
    ids=["plain", "reference", "many queries", "hook", "pruned", "parametrized", "replaced", "dtype"],
)
def test_layers_that_are_more_than_their_weights_are_called(change, pays):
    pool, features = CommonPool(WIDTH, HEADS, 4), torch.randn(1, 9, WIDTH)
    change(pool)
    absorbed = absorbed_queries(pool)
    assert (absorbed is not None and absorbed.pay(features)) == pays


def test_every_weight_has_a_gradient():
    """Processes that train together wait for all of them."""
    pool = CommonPool(WIDTH, HEADS)
    features = torch.randn(2, 9, WIDTH)
    assert absorbed_queries(pool).pay(features)
    pool(features, torch.tensor([9, 9])).sum().backward()
    assert all(weight.grad is not None for weight in pool.parameters())
    assert (pool.to_key.bias.grad == 0).all()


def test_transforms_and_compilers_see_the_projections():
    pool, features, lengths = CommonPool(WIDTH, HEADS), torch.randn(2, 9, WIDTH), torch.tensor([9, 2])
    wanted = pool(features, lengths)
    torch.testing.assert_close(torch.compile(pool, backend="eager", fullgraph=True)(features, lengths), wanted)
    torch.testing.assert_close(torch.export.export(pool, (features, lengths)).module()(features, lengths), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pool(features, lengths).float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sets_and_empty_batches_keep_dtype_and_shape(dtype):
    fusion = QueryFusion(Form(modalities=2, width=WIDTH, num_heads=HEADS, num_queries=2)).to(dtype)
    sets = torch.tensor([[True, True], [True, False], [False, True]])
    for batch in (0, 3):
        given = [EncoderOutput(torch.randn(batch, 9, WIDTH).to(dtype), torch.full((batch,), 9)) for _ in range(2)]
        assert fusion._absorbed(given) is not None
        for found, shape in (
            (fusion.over_sets(given, [None, None], sets), (3, batch, 2 * WIDTH)),
            (fusion(given, [None, None]).features, (batch, 2 * WIDTH)),
        ):
            assert found.dtype == dtype and found.shape == shape


def test_a_modality_that_a_set_leaves_out_may_be_anything():
    fusion = QueryFusion(Form(modalities=2, width=WIDTH, num_heads=HEADS, num_queries=2))
    good, bad = torch.randn(3, 9, WIDTH, requires_grad=True), torch.full((3, 9, WIDTH), torch.nan, requires_grad=True)
    given = [EncoderOutput(one, torch.full((3,), 9)) for one in (good, bad)]
    out = fusion.over_sets(given, [None, None], torch.tensor([[True, False], [False, False]]))
    assert out.isfinite().all() and (out[1] == 0).all()
    assert torch.autograd.grad(out.square().sum(), good)[0].isfinite().all()


def test_a_large_bias_in_half_precision_changes_nothing():
    pool = CommonPool(WIDTH, HEADS).half()
    features, lengths = torch.randn(2, 9, WIDTH).half(), torch.tensor([9, 9])
    wanted = pool(features, lengths)
    with torch.no_grad():
        pool.to_key.bias.fill_(4000.0)
    torch.testing.assert_close(pool(features, lengths), wanted)
