"""A pool that leaves the tokens unprojected gives what one with projections gives, and only where it pays."""

import unittest.mock

import pytest
import torch
from torch.nn.utils import prune

import crossmodal
from crossmodal.nn import AttentionPool, _absorbed

WIDTH, HEADS, FEATURES, LENGTH = 32, 2, 20, 9


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(_absorbed, "_WORTHWHILE", 0)


def pool_of(queries=2, **options):
    return AttentionPool(WIDTH, HEADS, queries, features=FEATURES, **options).double()


def partly_in_single_precision():
    """Projects in another dtype than its queries have, which are cast."""
    pool = pool_of()
    pool.to_key_value.float(), pool.to_out.float()
    assert pool(some_tokens().float()).dtype == torch.float32
    return pool


def by_projections(pool, tokens, lengths=None, mask=None):
    with unittest.mock.patch.object(AttentionPool, "_absorbed", lambda *_: None):
        return pool(tokens, lengths, mask)


def some_tokens():
    return torch.randn(3, LENGTH, FEATURES, dtype=torch.float64, requires_grad=True)


KEYS = torch.rand(3, 1, 1, LENGTH) < 0.5
KEYS[1] = False  # sees nothing
OPTIONS = {
    "nothing": {},
    "lengths": {"lengths": torch.tensor([LENGTH, 0, 4])},
    "mask": {"mask": KEYS},
    "bias of keys": {"mask": torch.randn(3, 1, 1, LENGTH, dtype=torch.float64)},
    "both": {"lengths": torch.tensor([LENGTH, 5, 4]), "mask": KEYS},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_answers_and_gradients_are_those_of_projections(options, queries, bias):
    pool, tokens = pool_of(queries, bias=bias), some_tokens()
    leaves, upstream = [tokens, *pool.parameters()], torch.randn(3, queries, WIDTH, dtype=torch.float64)
    with unittest.mock.patch.object(torch.nn.Linear, "forward", side_effect=AssertionError("projected")):
        pool.to_out.forward = lambda rows: rows @ pool.to_out.weight.T
        out = pool(tokens, **OPTIONS[options])
    wanted = by_projections(pool, tokens, **OPTIONS[options])
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)
    gradients = zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream), strict=True
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for sample in range(3):
        hidden = OPTIONS[options].get("lengths", torch.ones(3))[sample] == 0 or (
            "mask" in OPTIONS[options] and OPTIONS[options]["mask"].dtype == torch.bool and sample == 1
        )
        assert (out[sample] == 0).all() == hidden


def test_padding_may_be_anything():
    pool, lengths = pool_of(), torch.tensor([LENGTH, 4, 0])
    tokens = some_tokens().detach()
    wanted = pool(tokens, lengths)
    tokens[1, 4:] = tokens[2] = torch.nan
    tokens.requires_grad_()
    out = pool(tokens, lengths)
    torch.testing.assert_close(out, wanted)
    gradient, *others = torch.autograd.grad(out.square().sum(), [tokens, *pool.parameters()])
    assert (gradient[1, 4:] == 0).all() and (gradient[2] == 0).all()
    assert all(one.isfinite().all() for one in (gradient, *others))


@pytest.mark.parametrize(
    ("given", "absorbs"),
    [
        (lambda: (pool_of(), some_tokens(), None), True),
        (lambda: (pool_of(9), some_tokens(), None), False),  # would take more than the projections
        (lambda: (pool_of(), some_tokens()[:, :2], None), False),  # so few tokens
        (lambda: (pool_of(), some_tokens(), torch.ones(3, 1, 2, LENGTH, dtype=torch.bool)), False),  # query by query
        (lambda: (pool_of(), some_tokens(), torch.ones(LENGTH, dtype=torch.bool)), False),
        (lambda: (pool_of(), some_tokens().float(), None), False),
        (lambda: (partly_in_single_precision(), some_tokens().float(), None), False),
    ],
)
def test_only_where_it_pays(given, absorbs):
    pool, tokens, mask = given()
    assert (pool._absorbed(tokens, mask) is not None) == absorbs


def test_projections_that_are_more_than_their_weights_are_called():
    pool = pool_of()
    prune.l1_unstructured(pool.to_key_value, "weight", 3)
    assert pool._absorbed(some_tokens(), None) is None
    seen = []
    pool = pool_of()
    pool.to_key_value.register_forward_hook(lambda *_: seen.append(True))
    pool(some_tokens())
    assert seen


def test_a_forward_of_its_own_is_called():
    pool, tokens = pool_of(), some_tokens()
    project = pool.to_key_value.forward
    pool.to_key_value.forward = lambda rows: 0 * project(rows)
    assert (pool(tokens) == 0).all()


def test_small_problems_are_projected(monkeypatch):
    monkeypatch.undo()
    pool = AttentionPool(48, 4)
    assert pool._absorbed(torch.randn(8, 8, 48), None) is None
    assert pool._absorbed(torch.randn(128, 25, 48), None) is not None


def test_an_empty_batch_gives_an_empty_answer():
    pool = pool_of()
    assert pool(torch.randn(0, LENGTH, FEATURES, dtype=torch.float64)).shape == (0, 2, WIDTH)


def test_nothing_comes_of_nothing_whatever_the_bias():
    pool = pool_of()
    with torch.no_grad():
        pool.to_key_value.bias[WIDTH:] = torch.nan
    assert (pool(some_tokens(), torch.tensor([LENGTH, 0, 4]))[1] == 0).all()


def test_tracing_does_not_fix_the_batch():
    pool = pool_of().eval()
    with torch.no_grad():
        traced = torch.jit.trace(pool, (torch.randn(3, LENGTH, FEATURES, dtype=torch.float64),), check_trace=False)
        other = torch.randn(5, LENGTH, FEATURES, dtype=torch.float64)
        torch.testing.assert_close(traced(other), pool(other))


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        ((3, LENGTH, FEATURES + 1), None, "tokens must have shape"),
        ((3, LENGTH, FEATURES), (3, 1, 1, LENGTH + 1), rf"attn_mask .* \(3, {HEADS}, 2, {LENGTH}\)"),
    ],
)
def test_errors_are_those_of_projections(tokens, mask, message):
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        pool_of()(torch.randn(tokens, dtype=torch.float64), mask=mask)


def test_second_derivatives_are_those_of_differences():
    pool = AttentionPool(4, 1).double()
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert pool._absorbed(tokens, None) is not None
    assert torch.autograd.gradgradcheck(lambda x: pool(x, torch.tensor([3, 2])), (tokens,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_as_accurate_as_projections(dtype):
    pool, tokens = AttentionPool(64, 4, 2).to(dtype), torch.randn(16, 40, 64).to(dtype)
    exact = AttentionPool(64, 4, 2).double()
    exact.load_state_dict(pool.state_dict())
    wanted = exact(tokens.double())
    assert pool._absorbed(tokens, None) is not None
    errors = [(one.double() - wanted).abs().max() for one in (pool(tokens), by_projections(pool, tokens))]
    assert errors[0] <= 1.5 * errors[1]


def test_explain_says_that_tokens_are_not_projected():
    plan = crossmodal.explain(pool_of(), some_tokens())
    assert plan.details["projections"] == "of queries and results, not of tokens"
    assert "queries 4" in plan.details["problem"]
    assert "projections" not in crossmodal.explain(pool_of(9), some_tokens()).details
