"""The short way to the kernel gives what the general way gives, bit for bit, and takes nothing that it should not."""

import sys

import pytest
import torch

import crossmodal
from crossmodal.ops import _plain, attention

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)


@pytest.fixture
def general(monkeypatch):
    """Calls `attention` with the short way closed."""

    def call(*arguments, **options):
        with monkeypatch.context() as patch:
            # By its module's full name: in the package the name is the function's.
            patch.setattr(sys.modules["crossmodal.ops.attention"], "plain_attention", lambda *_: None)
            return crossmodal.attention(*arguments, **options)

    return call


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"scale": -2.0}], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 130], ids=lambda n: f"{n} queries")
def test_equals_the_general_way(isa, dtype, rows, options, general):
    query, key = torch.randn(2, 4, rows, 8).to(dtype), torch.randn(2, 4, 530, 8).to(dtype)
    for q in (query, query.transpose(1, 2).contiguous().transpose(1, 2)):
        got = crossmodal.attention(q, key, key, **options)
        wanted = general(q, key, key, **options)
        assert torch.equal(got, wanted) and got.stride() == wanted.stride()


@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 0, 5, 8), (2, 4, 0, 8), (2, 4, 5, 0)], ids=str)
def test_nothing_to_compute_equals_the_general_way(shape, general):
    tensor = torch.randn(shape)
    assert torch.equal(crossmodal.attention(tensor, tensor, tensor), general(tensor, tensor, tensor))


NOT_PLAIN = {
    "a gradient": lambda: (Q.clone().requires_grad_(), K, V),
    "a parameter": lambda: (torch.nn.Parameter(Q), K, V),
    "three dimensions": lambda: (Q[0], K[0], V[0]),
    "batch that broadcasts": lambda: (Q, K[:1], V[:1]),
    "heads that broadcast": lambda: (Q, K[:, :1], V[:, :1]),
    "other dtypes": lambda: (Q, K.double(), V),
    "integers": lambda: (Q.int(), K.int(), V.int()),
    "another device": lambda: (Q.to("meta"), K.to("meta"), V.to("meta")),
    "more values than keys": lambda: (Q, K, torch.randn(2, 4, 8, 6)),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_leaves_to_the_general_way(name):
    assert _plain.plain_attention(*NOT_PLAIN[name](), None, False) is None


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1, "1", torch.tensor(1.0)], ids=str)
def test_leaves_an_odd_scale_to_the_general_way(scale):
    assert _plain.plain_attention(Q, K, V, scale, False) is None


def test_leaves_transforms_to_the_general_way():
    found = []

    def call(q):
        found.append(_plain.plain_attention(q, K, V, None, False))
        return attention(q, K, V)

    torch.func.vmap(call)(Q[None])
    torch.func.grad(lambda q: call(q).sum())(Q)
    torch.func.jvp(call, (Q,), (Q,))
    with torch.autocast("cpu", torch.bfloat16):
        call(Q)
    assert found == [None] * 4


def test_takes_an_inference_call():
    assert _plain.plain_attention(Q, K, V, None, False) is not None
    with torch.no_grad():
        assert _plain.plain_attention(Q.clone().requires_grad_(), K, V, None, False) is not None
