"""torch.func over every function: vmap, grad, jvp, and what they make together."""

import pytest
import torch

import crossmodal
from crossmodal import Source, reference

EXAMPLES, BATCH, HEADS, SEQLEN_Q, SEQLEN_K, WIDTH = 3, 2, 4, 6, 5, 4
Q = torch.randn(EXAMPLES, BATCH, HEADS, SEQLEN_Q, WIDTH, dtype=torch.float64)
K = torch.randn(EXAMPLES, BATCH, HEADS, SEQLEN_K, WIDTH, dtype=torch.float64)
SINK = torch.randn(EXAMPLES, HEADS, dtype=torch.float64)
BIAS = torch.randn(EXAMPLES, 1, HEADS, SEQLEN_Q, SEQLEN_K, dtype=torch.float64)
LENGTHS = torch.tensor([[1, 5], [0, 3], [2, 2]])
ROWS = torch.tensor([6, 2])

# Functions of (query, key, sink, bias, lengths) of one example.
FUNCTIONS = {
    "attention": lambda m, q, k, s, b, n: m.attention(q, k, k, b, key_lengths=n, sink=s, return_lse=True),
    "grouped queries": lambda m, q, k, s, b, n: m.attention(q, k[:, :2], k[:, :2], enable_gqa=True, key_lengths=n),
    "window": lambda m, q, k, s, b, n: m.attention(
        q, k, k, window_size=(2, 1), causal_align="lower_right", key_lengths=n, query_lengths=ROWS, softcap=2.0
    ),
    "fuse": lambda m, q, k, s, b, n: tuple(
        m.fuse(
            q, [Source(k, k, n, bias=b), None, Source(k[:, :2], k[:, :2])], sink=s, return_lse=True, return_mass=True
        )
    ),
    "weighted_sum": lambda m, q, k, s, b, n: m.weighted_sum(b.expand(BATCH, -1, -1, -1), k, lengths=n),
    "softmax_weighted_sum": lambda m, q, k, s, b, n: m.softmax_weighted_sum(
        b.expand(BATCH, -1, -1, -1), k, lengths=n, mask=b > -1, scale=0.5
    ),
    **{
        f"associate {reduce}": lambda m, q, k, s, b, n, reduce=reduce: m.associate(
            q, [Source(k, k, n, b), Source(k, k)], reduce=reduce, sink=s, query_lengths=ROWS
        )
        for reduce in (None, "heads", "keys", "entropy", "mass")
    },
    "associate topk": lambda m, q, k, s, b, n: m.associate(q, k, topk=3, attn_mask=b)[0],
}
ALL = (Q, K, SINK, BIAS, LENGTHS)


def outputs(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def one(arguments, i, mapped):
    return [a[i] if m else a[0] for a, m in zip(arguments, mapped, strict=True)]


def loss_of(m, name):
    """A number that depends on every finite output."""

    def loss(*arguments):
        return sum(torch.where(o.isfinite(), o, 0.0).square().sum() for o in outputs(FUNCTIONS[name](m, *arguments)))

    return loss


def in_one_kernel():
    """What vmap and grad need no plain torch for."""
    return crossmodal.strict()


@pytest.mark.parametrize("mapped", [(1, 1, 1, 1, 1), (1, 0, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_agrees_with_a_loop(name, mapped):
    arguments = [a if m else a[0] for a, m in zip(ALL, mapped, strict=True)]
    dims = tuple(0 if m else None for m in mapped)
    with in_one_kernel():
        got = torch.func.vmap(lambda *a: FUNCTIONS[name](crossmodal, *a), dims)(*arguments)
    loop = [outputs(FUNCTIONS[name](crossmodal, *one(ALL, i, mapped))) for i in range(EXAMPLES)]
    for parts, stacked in zip(zip(*loop, strict=True), outputs(got), strict=True):
        torch.testing.assert_close(stacked, torch.stack(parts))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_agrees_with_the_reference(name):
    arguments = one(ALL, 0, (1,) * 5)
    with in_one_kernel():
        got = torch.func.grad(loss_of(crossmodal, name), (0, 1, 2, 3))(*arguments)
    wanted = torch.func.grad(loss_of(reference, name), (0, 1, 2, 3))(*arguments)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("mapped", [(1, 1, 1, 1, 1), (1, 0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradient_of_each_example_agrees_with_a_loop(name, mapped):
    gradient = torch.func.grad(loss_of(crossmodal, name), (0, 1, 2, 3))
    arguments = [a if m else a[0] for a, m in zip(ALL, mapped, strict=True)]
    with in_one_kernel():
        got = torch.func.vmap(gradient, tuple(0 if m else None for m in mapped))(*arguments)
    loop = [gradient(*one(ALL, i, mapped)) for i in range(EXAMPLES)]
    for parts, stacked in zip(zip(*loop, strict=True), got, strict=True):
        torch.testing.assert_close(stacked, torch.stack(parts))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_of_a_gradient_agrees_with_the_reference(name):
    arguments = one(ALL, 0, (1,) * 5)

    def penalty(m):
        gradient = torch.func.grad(loss_of(m, name), (0, 1, 2, 3))
        return torch.func.grad(lambda *a: sum(g.square().sum() for g in gradient(*a)), (0, 1, 2, 3))

    for g, w in zip(penalty(crossmodal)(*arguments), penalty(reference)(*arguments), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_agrees_with_the_reference(name):
    arguments = one(ALL, 0, (1,) * 5)
    tangents = tuple(torch.randn_like(a) for a in arguments[:4])

    def directional(m):
        return torch.func.jvp(lambda *a: loss_of(m, name)(*a, arguments[4]), tuple(arguments[:4]), tangents)

    got, wanted = directional(crossmodal), directional(reference)
    torch.testing.assert_close(got, wanted)
    assert got[1] != 0


def test_tangents_of_a_raw_dual_number_are_not_lost():
    """A custom operator has no forward-mode rule; the function takes another way."""
    import torch.autograd.forward_ad as forward_ad

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(Q[0], torch.ones_like(Q[0]))
        tangent = forward_ad.unpack_dual(crossmodal.attention(dual, K[0], K[0])).tangent
    assert tangent is not None and (tangent != 0).any()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_inside_a_compiled_region_is_not_lost(name):
    torch._dynamo.reset()
    arguments = one(ALL, 0, (1,) * 5)

    def directional(*leaves):
        return torch.func.jvp(lambda *a: loss_of(crossmodal, name)(*a, arguments[4]), leaves, leaves)[1]

    compiled = torch.compile(directional, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments[:4]), directional(*arguments[:4]))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_tangent_of_what_flows_back_is_not_lost(name):
    """Backward is linear in what flows in: its directional derivative along itself is itself."""
    import torch.autograd.forward_ad as forward_ad

    leaves = [a.clone().requires_grad_() for a in one(ALL, 0, (1,) * 5)[:4]]
    out = outputs(FUNCTIONS[name](crossmodal, *leaves, LENGTHS[0]))[0]
    cotangent = torch.randn_like(out)
    wanted = torch.autograd.grad(out, leaves, cotangent, retain_graph=True, allow_unused=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(cotangent, cotangent)
        found = torch.autograd.grad(out, leaves, dual, allow_unused=True)
        tangents = [None if g is None else forward_ad.unpack_dual(g).tangent for g in found]
    for tangent, gradient in zip(tangents, wanted, strict=True):
        if gradient is not None and (gradient != 0).any():
            torch.testing.assert_close(tangent, gradient)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("empty", ["query", "key"])
def test_vmap_takes_sequences_of_nothing(name, empty):
    q, k, b, n = Q, K, BIAS, LENGTHS
    if empty == "query":
        q, b = q[:, :, :, :0], b[..., :0, :]
    else:
        k, b, n = k[:, :, :, :0], b[..., :0], torch.zeros_like(n)
    if empty == "query" and (name == "window" or (name.startswith("associate") and "topk" not in name)):
        pytest.skip("its query lengths go with more queries")
    got = torch.func.vmap(lambda *a: FUNCTIONS[name](crossmodal, *a))(q, k, SINK, b, n)
    loop = [outputs(FUNCTIONS[name](crossmodal, *(t[i] for t in (q, k, SINK, b, n)))) for i in range(EXAMPLES)]
    for parts, stacked in zip(zip(*loop, strict=True), outputs(got), strict=True):
        torch.testing.assert_close(stacked, torch.stack(parts))


def test_hessian_of_attention_agrees_with_the_reference():
    q, k = Q[0, :1, :1, :2], K[0, :1, :1]
    got, wanted = (
        torch.func.hessian(lambda x, m=m: m.attention(x, k, k).square().sum())(q) for m in (crossmodal, reference)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout_under_vmap_drops_as_told(randomness):
    ones = torch.ones(1, 1, 64, 1)

    def dropped(q):
        return crossmodal.attention(q, torch.zeros(1, 1, 64, 4), ones, dropout_p=0.5)

    out = torch.func.vmap(dropped, randomness=randomness)(torch.zeros(2, 1, 1, 32, 4))
    assert torch.equal(out[0], out[1]) == (randomness == "same")
