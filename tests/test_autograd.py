"""Derivatives, first and second, by finite differences; what else asks for gradients."""

import pytest
import torch

import crossmodal
from crossmodal import Source

LENGTHS = torch.tensor([3, 0])


def doubles(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def fused(q, k, v, mask, bias):
    key_mask = torch.tensor([True, False, True, True, True])
    sources = [Source(k, v, LENGTHS, mask), None, Source(v, k, mask=key_mask, bias=bias)]
    result = crossmodal.fuse(q, sources, return_lse=True, return_mass=True)
    return result.out, result.lse, result.mass


FUSED_SHAPES = [(2, 2, 6, 5), (2, 2, 5, 5), (2, 2, 5, 5), (1, 2, 6, 5), (2, 1, 1, 5)]


def test_fuse_passes_gradcheck(isa):
    assert torch.autograd.gradcheck(fused, doubles(*FUSED_SHAPES))


def test_fuse_passes_gradgradcheck():
    assert torch.autograd.gradgradcheck(fused, doubles(*FUSED_SHAPES))


@pytest.mark.parametrize("seqlen_q", [2, 6], ids=["few_queries", "many_queries"])
def test_causal_attention_passes_gradcheck(isa, seqlen_q):
    def attention(q, k, v):
        return crossmodal.attention(q, k, v, is_causal=True, return_lse=True)

    assert torch.autograd.gradcheck(attention, doubles((1, 2, seqlen_q, 3), (1, 2, 5, 3), (1, 2, 5, 4)))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 1, 1, 5), (1, 2, 1, 5), (1, 2, 6, 1), (2, 1, 6, 5), (1, 1, 6, 5), (2, 2, 6, 5), (6, 5), (5,)],
    ids=str,
)
def test_bias_of_every_broadcast_form_passes_gradcheck(isa, shape):
    q, k, v, bias = doubles((2, 2, 6, 3), (2, 2, 5, 3), (2, 2, 5, 4), shape)
    assert torch.autograd.gradcheck(crossmodal.attention, (q, k, v, bias))


def test_one_tensor_as_query_key_and_value_passes_gradcheck():
    assert torch.autograd.gradcheck(lambda x: crossmodal.attention(x, x, x), doubles((1, 2, 6, 3)))


def test_weighted_sum_passes_gradcheck(isa):
    mask = torch.rand(6, 5) < 0.7

    def weighted(w, x):
        return crossmodal.weighted_sum(w, x, lengths=LENGTHS, mask=mask)

    inputs = doubles((2, 2, 6, 5), (2, 1, 5, 3))
    assert torch.autograd.gradcheck(weighted, inputs)
    assert torch.autograd.gradgradcheck(weighted, inputs)


@pytest.mark.parametrize("reduce", [None, "heads", "keys", "entropy", "mass"])
def test_associate_passes_gradcheck(reduce):
    def weights(q, k):
        return crossmodal.associate(q, [Source(k, k, LENGTHS)], reduce=reduce)

    assert torch.autograd.gradcheck(weights, doubles((2, 2, 4, 3), (2, 2, 5, 3)))


def test_attention_inside_a_checkpoint_gives_the_same_gradient():
    from torch.utils.checkpoint import checkpoint

    q, k, v = doubles((1, 2, 6, 3), (1, 2, 5, 3), (1, 2, 5, 3))
    out = checkpoint(crossmodal.attention, q, k, v, use_reentrant=False)
    wanted = torch.autograd.grad(crossmodal.attention(q, k, v).sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out.sum(), (q, k, v)), wanted, strict=True))


def test_gradient_penalty_trains_through_the_operator():
    """What an adversarial critic does: the norm of a gradient is part of the loss."""
    q, k, v = doubles((2, 2, 6, 4), (2, 2, 5, 4), (2, 2, 5, 4))
    gradient = torch.autograd.grad(crossmodal.attention(q, k, v).square().sum(), q, create_graph=True)[0]
    penalty = (gradient.norm() - 1).square()
    assert all((g != 0).any() for g in torch.autograd.grad(penalty, (q, k, v)))


def test_only_wanted_gradients_are_returned():
    q, k, v = doubles((1, 1, 6, 3), (1, 1, 5, 3), (1, 1, 5, 3))
    out = crossmodal.attention(q.detach(), k, v.detach())
    assert torch.autograd.grad(out.sum(), k)[0].shape == k.shape


def test_gradients_keep_dtype_and_shape_of_a_wider_mask():
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.randn(1, 2, 1, 6, requires_grad=True)
    gradient = torch.autograd.grad(crossmodal.attention(q, k, v, mask).float().square().sum(), mask)[0]
    assert gradient.dtype == torch.float32 and gradient.shape == mask.shape
