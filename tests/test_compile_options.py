"""torch.compile beyond the usual call: every option, strict mode, autocast, and the lack of a second derivative."""

import pytest
import torch

import crossmodal
from crossmodal import Source
from tests.test_compile import assert_close, gradients

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
TWO_HEADS_K, TWO_HEADS_V = K[:, :2].clone(), V[:, :2].clone()
SINK, SEED = torch.randn(4), torch.tensor([7])
KEY_LENGTHS, QUERY_LENGTHS = torch.tensor([3, 7]), torch.tensor([5, 2])
ENDS_Q, ENDS_K = torch.tensor([0, 4, 10], dtype=torch.int32), torch.tensor([0, 9, 14], dtype=torch.int32)

OPTIONS = {
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "sink": {"sink": SINK},
    "window": {"window_size": (2, 1)},
    "lower_right": {"is_causal": True, "causal_align": "lower_right"},
    "dropout": {"dropout_p": 0.5, "dropout_seed": SEED},
    "return_lse": {"return_lse": True},
}
DENSE_OPTIONS = {
    **OPTIONS,
    "key_lengths": {"key_lengths": KEY_LENGTHS},
    "query_lengths": {"query_lengths": QUERY_LENGTHS},
    "bool mask": {"attn_mask": torch.rand(2, 1, 1, 7) < 0.7},
    "float mask": {"attn_mask": torch.randn(4, 5, 7)},
    "lengths at lower_right": {
        "window_size": (2, 1),
        "causal_align": "lower_right",
        "key_lengths": KEY_LENGTHS,
        "query_lengths": QUERY_LENGTHS,
    },
}
FUSE_OPTIONS = {
    **{name: OPTIONS[name] for name in ("scale", "softcap", "sink", "dropout", "return_lse")},
    "query_lengths": {"query_lengths": QUERY_LENGTHS},
    "return_mass": {"return_mass": True},
}


def finite_sum(result):
    """One tensor that every output flows into."""
    results = [t for t in (result if isinstance(result, tuple) else (result,)) if t is not None]
    return torch.stack([torch.where(t.isfinite(), t, 0.0).square().sum() for t in results])


def packed(q, k, v, **options):
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    return crossmodal.attention_varlen(q, k, v, ENDS_Q, ENDS_K, 6, 9, **options)


def associated(q, k, v, **options):
    """Of the strongest links the weights: their indices have no gradient."""
    result = crossmodal.associate(q, k, sink=SINK, softcap=2.0, query_lengths=QUERY_LENGTHS, **options)
    return result[0] if "topk" in options else result


def two_sources(q, k, v, **options):
    bias = (q @ k.transpose(2, 3)).tanh()
    sources = [Source(k, v, KEY_LENGTHS, bias=bias), None, Source(k[:, :2], v[:, :2], mask=K[:, :1, None, :, 0] > 0)]
    return crossmodal.fuse(q, sources, **options)


CALLS = {
    **{
        f"attention {name}": lambda q, k, v, o=options: crossmodal.attention(q, k, v, **o)
        for name, options in DENSE_OPTIONS.items()
    },
    "attention enable_gqa": lambda q, k, v: crossmodal.attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    **{f"fuse {name}": lambda q, k, v, o=o: two_sources(q, k, v, **o) for name, o in FUSE_OPTIONS.items()},
    **{f"attention_varlen {name}": lambda q, k, v, o=o: packed(q, k, v, **o) for name, o in OPTIONS.items()},
    "attention_varlen enable_gqa": lambda q, k, v: packed(q, k[:, :2], v[:, :2], enable_gqa=True),
    "weighted_sum mask": lambda q, k, v: crossmodal.weighted_sum(
        q @ k.transpose(2, 3), v, lengths=KEY_LENGTHS, mask=DENSE_OPTIONS["bool mask"]["attn_mask"]
    ),
    "weighted_sum of one tensor": lambda q, k, v: crossmodal.weighted_sum(q[..., :5], q[..., :5]),
    "softmax_weighted_sum mask and scale": lambda q, k, v: crossmodal.softmax_weighted_sum(
        q @ k.transpose(2, 3), v, lengths=KEY_LENGTHS, mask=DENSE_OPTIONS["bool mask"]["attn_mask"], scale=0.3
    ),
    **{
        f"associate {reduce}": lambda q, k, v, reduce=reduce: associated(q, k, v, reduce=reduce)
        for reduce in (None, "heads", "keys", "entropy", "mass")
    },
    "associate topk": lambda q, k, v: associated(q, k, v, topk=3),
    "associate of one tensor": lambda q, k, v: crossmodal.associate(q, q),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_option_compiles_in_one_graph_and_equals_eager(name):
    torch._dynamo.reset()

    def call(q, k, v):
        return finite_sum(CALLS[name](q, k, v))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, Q, K, V), gradients(call, Q, K, V), strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("name", CALLS)
def test_strict_mode_lets_compiled_calls_pass(name):
    """Also forward and backward: what is compiled takes the kernels that eager takes."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: finite_sum(CALLS[name](*x)), fullgraph=True, backend="aot_eager")
    with crossmodal.strict():
        gradients(compiled, Q, K, V)


def test_strict_mode_may_begin_within_compiled_code():
    torch._dynamo.reset()

    def strictly(q):
        with crossmodal.strict():
            return crossmodal.attention(q * 2, q, q) + 1

    torch.testing.assert_close(torch.compile(strictly, fullgraph=True, backend="aot_eager")(Q), strictly(Q))


def test_strict_mode_refuses_while_compiling_what_no_kernel_takes():
    """A device without kernels stands for every reason."""
    torch._dynamo.reset()
    q = Q.to("meta")
    compiled = torch.compile(lambda q: crossmodal.attention(q, q, q), fullgraph=True, backend="eager")
    with crossmodal.strict(), pytest.raises(Exception, match="no kernel takes this call in strict mode"):
        compiled(q)
    assert compiled(q).shape == q.shape


DIFFERENTIABLE = [
    "attention return_lse",
    "fuse return_mass",
    "attention_varlen return_lse",
    "weighted_sum mask",
    "softmax_weighted_sum mask and scale",
    "associate entropy",
    "associate mass",
]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivative_of_a_compiled_call_is_an_error_never_silently_wrong(name):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: finite_sum(CALLS[name](*x)).sum(), fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in (Q, K, V)]
    (first,) = torch.autograd.grad(compiled(*leaves), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.square().sum().backward(retain_graph=True)
    # Who asks for one tensor's gradient learns that there is no way to it; allow_unused=True waives that, in all torch.
    with pytest.raises(RuntimeError, match=r"double backward|to not have been used in the graph"):
        torch.autograd.grad(first.square().sum(), leaves)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivative_of_an_eager_call_is_that_of_the_reference(name, monkeypatch):
    leaves = [t.double().requires_grad_() for t in (Q, K, V)]

    def penalty():
        (first,) = torch.autograd.grad(finite_sum(CALLS[name](*leaves)).sum(), leaves[:1], create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaves, allow_unused=True)

    got = penalty()
    for function in ("attention", "fuse", "attention_varlen", "weighted_sum", "softmax_weighted_sum", "associate"):
        monkeypatch.setattr(crossmodal, function, getattr(crossmodal.reference, function))
    for a, b in zip(got, penalty(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_compiled_call_under_autocast_keeps_its_dtypes():
    torch._dynamo.reset()
    sink = SINK.clone().requires_grad_()
    compiled = torch.compile(
        lambda s: crossmodal.attention(Q, K, K, sink=s, return_lse=True), fullgraph=True, backend="aot_eager"
    )
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = compiled(sink)
        wanted = crossmodal.attention(Q, K, K, sink=sink, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert torch.equal(out, wanted[0]) and torch.equal(lse, wanted[1])
    assert torch.autograd.grad(lse.sum(), sink)[0].dtype == torch.float32


def test_another_presence_pattern_is_one_more_compilation_and_another_length_is_not():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fuse = torch.compile(lambda q, sources: crossmodal.fuse(q, sources).out, fullgraph=True, backend=counter)
    first = Source(K, V, KEY_LENGTHS)
    for lengths in ([7, 7], [0, 7], [0, 0]):
        second = Source(K, V, torch.tensor(lengths))
        torch.testing.assert_close(fuse(Q, [first, second]), crossmodal.fuse(Q, [first, second]).out)
    assert counter.frame_count == 1
    torch.testing.assert_close(fuse(Q, [first, None]), crossmodal.fuse(Q, [first, None]).out)
    assert counter.frame_count == 2


WILD = torch.tensor([-5, 700])
CLAMPED = {  # function of lengths, what WILD is taken for
    "key_lengths": (lambda n: crossmodal.attention(Q, K, V, key_lengths=n), [0, 7]),
    "query_lengths": (lambda n: crossmodal.attention(Q, K, V, query_lengths=n), [0, 5]),
    "fuse": (lambda n: crossmodal.fuse(Q, [Source(K, V, n), Source(K, V)], return_mass=True).mass, [0, 7]),
    "weighted_sum": (lambda n: crossmodal.weighted_sum(Q @ K.transpose(2, 3), V, lengths=n), [0, 7]),
    "softmax_weighted_sum": (lambda n: crossmodal.softmax_weighted_sum(Q @ K.transpose(2, 3), V, lengths=n), [0, 7]),
    "associate": (lambda n: crossmodal.associate(Q, K, key_lengths=n), [0, 7]),
    "mass": (lambda n: crossmodal.associate(Q, K, key_lengths=n, reduce="mass"), [0, 7]),
}


@pytest.mark.parametrize("name", CLAMPED)
def test_lengths_that_cannot_be_read_are_clamped(name):
    torch._dynamo.reset()
    function, tame = CLAMPED[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(WILD), function(torch.tensor(tame)))
