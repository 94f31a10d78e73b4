"""Derivatives: first and second by finite differences, forward mode, and the operators' registration with torch."""

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


@pytest.mark.filterwarnings("ignore")
def test_forward_mode_agrees_with_the_reference():
    q, k, v = (t.detach() for t in doubles((1, 2, 6, 3), (1, 2, 5, 3), (1, 2, 5, 3)))
    tangent = torch.randn_like(q)
    got = torch.func.jvp(lambda x: crossmodal.attention(x, k, v), (q,), (tangent,))[1]
    wanted = torch.func.jvp(lambda x: crossmodal.reference.attention(x, k, v), (q,), (tangent,))[1]
    assert torch.allclose(got, wanted) and (got != 0).any()


def test_vmap_agrees_with_a_loop():
    q, k = torch.randn(3, 2, 2, 6, 4), torch.randn(3, 2, 2, 5, 4)
    got = torch.func.vmap(lambda a, b: crossmodal.attention(a, b, b))(q, k)
    wanted = torch.stack([crossmodal.attention(a, b, b) for a, b in zip(q, k, strict=True)])
    torch.testing.assert_close(got, wanted)


def test_vmap_over_lengths_alone_agrees_with_a_loop():
    q, k = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 5, 4)
    lengths = torch.tensor([[1, 5], [0, 3], [2, 2]])
    got = torch.func.vmap(lambda n: crossmodal.attention(q, k, k, key_lengths=n))(lengths)
    wanted = torch.stack([crossmodal.attention(q, k, k, key_lengths=n) for n in lengths])
    torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("ignore")
def test_vmap_over_lengths_and_mask_of_a_weighted_sum_agrees_with_a_loop():
    weights, values = torch.rand(2, 2, 6, 5), torch.randn(2, 2, 5, 4)
    lengths, mask = torch.tensor([[1, 5], [0, 3], [2, 2]]), torch.rand(3, 6, 5) < 0.5
    got = torch.func.vmap(lambda n, m: crossmodal.weighted_sum(weights, values, lengths=n, mask=m))(lengths, mask)
    wanted = [crossmodal.weighted_sum(weights, values, lengths=n, mask=m) for n, m in zip(lengths, mask, strict=True)]
    torch.testing.assert_close(got, torch.stack(wanted))


Q, K, V = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
MASK, KEEP = torch.randn(1, 3, 5, 7), torch.rand(2, 1, 1, 7) < 0.5
OPS = torch.ops.crossmodal


def forward_arguments(return_mass: bool, for_backward: bool):
    return (Q, [K, K], [V, V], [torch.tensor([3, 7]), None], [MASK, KEEP], [0, 1], True, 0.3, return_mass, for_backward)


@pytest.mark.parametrize("return_mass", [False, True])
@pytest.mark.parametrize("for_backward", [False, True])
def test_attention_fwd_passes_opcheck(return_mass, for_backward):
    torch.library.opcheck(OPS.attention_fwd.default, forward_arguments(return_mass, for_backward))


@pytest.mark.parametrize("layout", ["plain", "heads_inside"])
@pytest.mark.parametrize("wanted", [[1] * 7, [0, 1, 0, 0, 1, 0, 0]], ids=["all", "some"])
def test_attention_bwd_passes_opcheck(wanted, layout):
    query = Q if layout == "plain" else Q.transpose(1, 2).contiguous().transpose(1, 2)
    out, lse, mass, statistics = OPS.attention_fwd(query, *forward_arguments(True, True)[1:])
    inputs = (query, [K, K], [V, V], [torch.tensor([3, 7]), None], [MASK, KEEP.float()], [0, 1])
    arguments = (out, lse, mass, *inputs, out, statistics, mass, True, 0.3, wanted)
    torch.library.opcheck(OPS.attention_bwd.default, arguments)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_associate_passes_opcheck(output):
    torch.library.opcheck(OPS.associate.default, (Q, [K], [None], [MASK], [0], 0.3, output, 3))


def test_weighted_sum_passes_opcheck():
    weights, mask = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7) < 0.5
    lengths = torch.tensor([3, 7])
    torch.library.opcheck(OPS.weighted_sum_fwd.default, (weights, V, lengths, mask))
    dout = torch.randn(2, 3, 5, 6)
    torch.library.opcheck(OPS.weighted_sum_bwd.default, (dout, weights, V, lengths, None, True, False))
