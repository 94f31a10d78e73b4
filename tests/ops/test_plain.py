"""The short way to the kernel gives what the general way gives, bit for bit, and takes nothing that it should not."""

import sys

import pytest
import torch

import crossmodal
from crossmodal import Source
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


class Other(torch.Tensor):
    pass


NOT_PLAIN = {
    "a subclass": lambda: (Q.as_subclass(Other), K, V),
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
    assert _plain.plain_attention(*NOT_PLAIN[name](), None, None, None, False) is None


MASKS = {
    "per key": torch.rand(2, 1, 1, 7) < 0.7,
    "per query": torch.randn(1, 4, 5, 7),
    "float64": torch.randn(2, 4, 1, 7).double(),
}


@pytest.mark.parametrize("name", [None, *MASKS])
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0]), torch.tensor([3, 7], dtype=torch.int32)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks_lengths_and_gradients_equal_the_general_way(name, lengths, is_causal, general):
    def results(call):
        leaves = [t.clone().requires_grad_() for t in (Q, K, V)]
        mask = None
        if name is not None:
            mask = MASKS[name].clone().requires_grad_(MASKS[name].is_floating_point())
        out = call(*leaves, mask, is_causal=is_causal, key_lengths=lengths)
        leaves += [] if mask is None or not mask.requires_grad else [mask]
        with torch.no_grad():
            again = call(*leaves[:3], mask, is_causal=is_causal, key_lengths=lengths)
        return [out, again, *torch.autograd.grad(out.square().sum(), leaves)]

    for got, wanted in zip(results(crossmodal.attention), results(general), strict=True):
        assert torch.equal(got, wanted) and got.stride() == wanted.stride()


@pytest.mark.parametrize("of", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("needed", [(0,), (1, 2), (0, 1, 2)], ids=str)
def test_first_and_second_derivatives_equal_the_general_way(of, needed, general):
    def results(call):
        tensors = [t.to(of).clone() for t in (Q, K, V)]
        leaves = [tensors[i].requires_grad_() for i in needed]
        out = call(*tensors, is_causal=True)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return [*first, *second]

    for got, wanted in zip(results(crossmodal.attention), results(general), strict=True):
        assert torch.equal(got, wanted)


def test_gradients_of_many_cotangents_at_once():
    leaves = [t.clone().requires_grad_() for t in (Q, K, V)]
    out = crossmodal.attention(*leaves)
    cotangents = torch.randn(3, *out.shape)
    together = torch.autograd.grad(out, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
        for got, wanted in zip(together, alone, strict=True):
            torch.testing.assert_close(got[i], wanted)


def test_a_learned_query_is_plain():
    assert _plain.plain_attention(torch.nn.Parameter(Q), K, V, None, None, None, False) is not None


@pytest.fixture
def general_fuse(monkeypatch):
    """Calls `fuse` with the short way closed."""

    def call(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["crossmodal.ops.fuse"], "plain_fuse", lambda *_: None)
            return crossmodal.fuse(*arguments, **options)

    return call


@pytest.mark.parametrize("options", [{}, {"return_mass": True}, {"return_lse": True, "scale": 0.3}], ids=str)
@pytest.mark.parametrize("lengths", [None, torch.tensor([7, 0]), torch.tensor([3, 7], dtype=torch.int32)], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_fuse_equals_the_general_way(options, lengths, count, dtype, general_fuse):
    tensors = [t.to(dtype) for t in (Q, *[K, V] * count)]

    def results(call):
        leaves = [t.clone().requires_grad_() for t in tensors]

        def result():
            keys, values = leaves[1::2], leaves[2::2]
            sources = [
                Source(k, v, lengths if i == 0 else None) for i, (k, v) in enumerate(zip(keys, values, strict=True))
            ]
            return [t for t in call(leaves[0], sources, **options) if t is not None]

        outputs = result()
        with torch.no_grad():
            again = result()
        return [*outputs, *again, *torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves)]

    for got, wanted in zip(results(crossmodal.fuse), results(general_fuse), strict=True):
        assert torch.equal(got, wanted) and got.stride() == wanted.stride()


FUSIONS_THAT_ARE_NOT_PLAIN = {
    "no sources": [],
    "an absent source": [Source(K, V), None],
    "a mask": [Source(K, V, mask=torch.ones(7, dtype=torch.bool))],
    "a bias": [Source(K, V), Source(K, V, bias=torch.randn(7))],
    "heads that broadcast": [Source(K[:, :1], V[:, :1])],
    "more values than keys": [Source(K, torch.randn(2, 4, 8, 6))],
    "values of two widths": [Source(K, V), Source(K, torch.randn(2, 4, 7, 5))],
    "a length too large": [Source(K, V, torch.tensor([8, 0]))],
    "a pair": [(K, V)],
    "other dtypes": [Source(K.double(), V.double())],
    "a source in place of a list": Source(K, V),
}


@pytest.mark.parametrize("name", FUSIONS_THAT_ARE_NOT_PLAIN)
def test_leaves_other_fusions_to_the_general_way(name):
    assert _plain.plain_fuse(Q, FUSIONS_THAT_ARE_NOT_PLAIN[name], None, False, False) is None


@pytest.fixture
def general_weighting(monkeypatch):
    """Calls a weighted sum with the short way closed."""

    def call(name, *tensors):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[f"crossmodal.ops.{name}"], "are_plain_weights", lambda *_: False)
            return getattr(crossmodal, name)(*tensors)

    return call


@pytest.mark.parametrize("name", ["weighted_sum", "softmax_weighted_sum"])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 4, 1, 530), (0, 4, 5, 7), (2, 4, 5, 0)], ids=str)
def test_weighted_sums_equal_the_general_way(name, shape, dtype, general_weighting):
    weights, values = torch.randn(shape).to(dtype), torch.randn(*shape[:2], shape[3], 6).to(dtype)

    def results(call):
        leaves = [weights.clone().requires_grad_(), values.clone().requires_grad_()]
        out = call(*leaves)
        with torch.no_grad():
            again = call(*leaves)
        return [out, again, *torch.autograd.grad(out.square().sum(), leaves)]

    short = results(getattr(crossmodal, name))
    for got, wanted in zip(short, results(lambda *tensors: general_weighting(name, *tensors)), strict=True):
        assert torch.equal(got, wanted) and got.stride() == wanted.stride()


WEIGHTINGS_THAT_ARE_NOT_PLAIN = {
    "heads that broadcast": lambda: (torch.rand(2, 1, 5, 7), V, None, None),
    "three dimensions": lambda: (torch.rand(4, 5, 7), V[0], None, None),
    "too few values": lambda: (torch.rand(2, 4, 5, 8), V, None, None),
    "lengths": lambda: (torch.rand(2, 4, 5, 7), V, torch.tensor([7, 2]), None),
    "a mask": lambda: (torch.rand(2, 4, 5, 7), V, None, torch.ones(5, 7, dtype=torch.bool)),
    "other dtypes": lambda: (torch.rand(2, 4, 5, 7).double(), V, None, None),
}


@pytest.mark.parametrize("name", WEIGHTINGS_THAT_ARE_NOT_PLAIN)
def test_leaves_other_weightings_to_the_general_way(name):
    assert not _plain.are_plain_weights(*WEIGHTINGS_THAT_ARE_NOT_PLAIN[name]())


NOT_PLAIN_OPTIONS = {
    "a mask of two dimensions": {"attn_mask": torch.ones(5, 7, dtype=torch.bool)},
    "a mask of integers": {"attn_mask": torch.ones(1, 1, 5, 7, dtype=torch.int64)},
    "a mask that does not broadcast": {"attn_mask": torch.ones(1, 1, 5, 6, dtype=torch.bool)},
    "a mask elsewhere": {"attn_mask": torch.ones(1, 1, 5, 7, dtype=torch.bool, device="meta")},
    "no mask at all": {"attn_mask": "mask"},
    "a length too large": {"key_lengths": torch.tensor([7, 8])},
    "a length below 0": {"key_lengths": torch.tensor([-1, 7])},
    "lengths of another batch": {"key_lengths": torch.tensor([7, 7, 7])},
    "lengths of floats": {"key_lengths": torch.tensor([7.0, 7.0])},
}


@pytest.mark.parametrize("name", NOT_PLAIN_OPTIONS)
def test_leaves_odd_options_to_the_general_way(name):
    options = {"attn_mask": None, "key_lengths": None, **NOT_PLAIN_OPTIONS[name]}
    assert _plain.plain_attention(Q, K, V, *options.values(), None, False) is None


@pytest.mark.parametrize("count", [3, 1000])
def test_lengths_are_looked_at_one_and_all(count):
    q = torch.randn(count, 1, 1, 4)
    lengths = torch.ones(count, dtype=torch.int64)
    crossmodal.attention(q, q, q, key_lengths=lengths)
    for wrong in (-1, 2):
        lengths[count - 2] = wrong
        with pytest.raises(
            ValueError, match=rf"key_lengths must lie in \[0, 1\], got {wrong} at batch index {count - 2}"
        ):
            crossmodal.attention(q, q, q, key_lengths=lengths)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1, "1", torch.tensor(1.0)], ids=str)
def test_leaves_an_odd_scale_to_the_general_way(scale):
    assert _plain.plain_attention(Q, K, V, None, None, scale, False) is None


def test_leaves_transforms_to_the_general_way():
    found = []

    def call(q):
        found.append(_plain.plain_attention(q, K, V, None, None, None, False))
        return attention(q, K, V)

    torch.func.vmap(call)(Q[None])
    torch.func.grad(lambda q: call(q).sum())(Q)
    torch.func.jvp(call, (Q,), (Q,))
    with torch.autocast("cpu", torch.bfloat16):
        call(Q)
    assert found == [None] * 4


def test_takes_an_inference_call():
    assert _plain.plain_attention(Q, K, V, None, None, None, False) is not None
    with torch.no_grad():
        assert _plain.plain_attention(Q.clone().requires_grad_(), K, V, None, None, None, False) is not None
