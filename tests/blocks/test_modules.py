"""Modules around the operators: what a missing modality is to them, and which way gradients go."""

import pytest
import torch

from crossmodal.blocks import CommonAttention, CommonBlock, CommonPool
from crossmodal.nn import gradient_reversal

WIDTH, HEADS = 16, 4


def tokens(length, *lengths):
    return torch.randn(len(lengths), length, WIDTH), torch.tensor(lengths)


def test_pool_of_nothing_is_zero():
    pool = CommonPool(WIDTH, HEADS, num_queries=2)
    pooled = pool(*tokens(5, 5, 0, 3))
    assert pooled.shape == (3, 2 * WIDTH)
    assert (pooled[1] == 0).all() and (pooled[[0, 2]] != 0).any(1).all()


@pytest.mark.parametrize("project_values", [True, False])
def test_cross_modal_attention_is_the_same_on_both_implementations(project_values):
    module = CommonAttention(WIDTH, HEADS, project_values=project_values)
    query, _ = tokens(4, 4, 4, 4)
    sources = [tokens(5, 5, 0, 3), None, tokens(7, 7, 7, 0)]
    biases = [torch.randn(3, requires_grad=True), None, None]
    found = []
    for implementation in ("fused", "reference"):
        module.implementation = implementation
        out, mass = module(query, sources, biases=biases, return_mass=True)
        gradients = torch.autograd.grad(out.square().sum() + mass.square().sum(), [*module.parameters(), biases[0]])
        found.append([out, mass, *gradients])
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-4, atol=1e-5)


def test_likeness_attends_to_the_like_from_the_start():
    """Among tokens at random each finds its own noisy copy, which independent projections do not."""
    right = {}
    for likeness in (0.0, 4.0):
        module = CommonAttention(WIDTH, HEADS, likeness=likeness)
        query = torch.nn.functional.layer_norm(torch.randn(50, 8, WIDTH), (WIDTH,))
        others = query + 0.1 * torch.randn_like(query)
        (weights,) = module.weights(query, [(others, torch.full((50,), 8))])
        right[likeness] = (weights.argmax(2) == torch.arange(8)).double().mean()
    assert right[4.0] > 0.9 and right[0.0] < 0.5


def test_values_that_are_not_projected_are_the_tokens_themselves():
    module = CommonAttention(WIDTH, HEADS, project_values=False)
    (features, lengths) = tokens(1, 1, 1)
    out, _ = module(torch.randn(2, 3, WIDTH), [(features, lengths)])
    torch.testing.assert_close(out, features.expand(-1, 3, -1))


def test_positions_are_in_queries_and_keys_but_not_in_values():
    module = CommonAttention(WIDTH, 1, project_values=False)
    query, _ = tokens(4, 4, 4)
    (features, lengths), other = tokens(6, 6, 3), tokens(3, 3, 2)
    here, there = torch.randn(4, WIDTH), torch.randn(6, WIDTH)
    out, _ = module(query, [(features, lengths), other], query_position=here, positions=[there, None])
    weights = module.weights(query + here, [(features + there, lengths), other])
    torch.testing.assert_close(out, torch.cat(weights, 2) @ torch.cat([features, other[0]], 1))


def test_weights_add_up_to_the_mass():
    module = CommonAttention(WIDTH, HEADS)
    query, _ = tokens(4, 4, 4)
    sources = [tokens(5, 5, 2), tokens(3, 3, 0)]
    _, mass = module(query, sources, return_mass=True)
    for column, weights in enumerate(module.weights(query, sources)):
        torch.testing.assert_close(weights.sum(2), mass[..., column].mean(1))


def test_block_with_a_closed_gate_does_not_see_its_sources():
    block = CommonBlock(WIDTH, HEADS, gate=0.0)
    query, _ = tokens(4, 4, 4)
    first, second = (block(query, [tokens(5, 5, 5)])[0] for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        block.gate.fill_(1.0)
    first, second = (block(query, [tokens(5, 5, 5)])[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_reversed_gradient_is_minus_the_strength_times_the_gradient():
    values = torch.randn(5, requires_grad=True)
    out = gradient_reversal(values, 0.3)
    assert torch.equal(out, values)
    (gradient,) = torch.autograd.grad(out.square().sum(), values)
    torch.testing.assert_close(gradient, -0.3 * 2 * values.detach())


def test_heads_that_do_not_share_the_width_are_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 10 and 4"):
        CommonPool(10, 4)
