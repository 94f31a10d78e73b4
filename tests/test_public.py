"""What the public functions have in common: a twin in the reference, the signature, any size down to zero."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import crossmodal
from crossmodal import Source, reference

FUNCTIONS = ["attention", "fuse", "attention_varlen", "weighted_sum", "softmax_weighted_sum", "associate"]
Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
SCORES, PACKED = torch.randn(2, 4, 5, 7), torch.randn(5, 4, 8)
ENDS = torch.tensor([0, 2, 5], dtype=torch.int32)
CALLS = {
    "attention": lambda m: m.attention(Q, K, V, is_causal=True),
    "fuse": lambda m: m.fuse(Q, [Source(K, V), None], return_lse=True, return_mass=True),
    "attention_varlen": lambda m: m.attention_varlen(PACKED, PACKED, PACKED, ENDS, ENDS, 3, 3),
    "weighted_sum": lambda m: m.weighted_sum(SCORES, V),
    "softmax_weighted_sum": lambda m: m.softmax_weighted_sum(SCORES, V),
    "associate": lambda m: m.associate(Q, K, reduce="heads"),
}
SIGNATURES = {
    "attention": "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *, "
    "key_lengths=None, query_lengths=None, causal_align='upper_left', window_size=(-1, -1), softcap=0.0, sink=None, "
    "return_lse=False, dropout_seed=None",
    "fuse": "query, sources, *, dropout_p=0.0, scale=None, query_lengths=None, softcap=0.0, sink=None, "
    "return_lse=False, return_mass=False, dropout_seed=None",
    "attention_varlen": "query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
    "is_causal=False, scale=None, enable_gqa=False, *, causal_align='upper_left', window_size=(-1, -1), softcap=0.0, "
    "sink=None, return_lse=False, dropout_seed=None",
    "weighted_sum": "weights, values, *, lengths=None, mask=None",
    "softmax_weighted_sum": "scores, values, *, lengths=None, mask=None, scale=None",
    "associate": "query, key_or_sources, *, reduce=None, topk=None, scale=None, key_lengths=None, query_lengths=None, "
    "attn_mask=None, softcap=0.0, sink=None",
    "explain": "fn, /, *args, **kwargs",
}


def signature(function) -> str:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(bare)).strip("()")


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_promised_one(name):
    assert signature(getattr(crossmodal, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twin_in_the_reference_has_the_same_signature(name):
    assert signature(getattr(reference, name)) == signature(getattr(crossmodal, name))


def test_every_function_has_a_twin():
    functions = {name for name in crossmodal.ops.__dict__ if inspect.isfunction(getattr(crossmodal.ops, name))}
    assert functions == set(FUNCTIONS) == {n for n in reference.__all__ if callable(getattr(reference, n))}


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_calls_neither_sdpa_nor_a_kernel_of_ours(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the reference called scaled_dot_product_attention")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    with Operators() as operators:
        CALLS[name](reference)
    assert operators.names
    assert not [n for n in operators.names if n.startswith("crossmodal") or "scaled_dot_product" in n]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_one_operator_of_ours(name):
    with Operators() as operators:
        CALLS[name](crossmodal)
    assert len([n for n in operators.names if n.startswith("crossmodal")]) == 1


ZEROS = ["batch", "heads", "queries", "keys", "head_dim", "head_dim_v"]


def sized(zero: str) -> dict[str, int]:
    sizes = {"batch": 2, "heads": 3, "queries": 5, "keys": 7, "head_dim": 8, "head_dim_v": 6}
    return {**sizes, zero: 0}


def assert_twins_agree(call, *leaves):
    """Outputs and gradients."""
    results = []
    for namespace in (crossmodal, reference):
        outputs = [t for t in call(namespace, *leaves) if t is not None]
        flowing = [t for t in outputs if t.requires_grad]
        loss = sum(torch.where(t.isfinite(), t, 0.0).square().sum() for t in flowing)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if flowing else ()
        results.append([*outputs, *(torch.zeros(0) if g is None else g for g in gradients)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def randn(*shape):
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("options", [{}, {"sink": torch.zeros(3)}, {"is_causal": True}, {"softcap": 2.0}], ids=list)
def test_any_dimension_of_attention_may_be_zero_whatever_the_options(isa, zero, options):
    n = sized(zero)
    if "sink" in options:
        options = {"sink": torch.zeros(n["heads"])}
    lead = (n["batch"], n["heads"])
    leaves = (
        randn(*lead, n["queries"], n["head_dim"]),
        randn(*lead, n["keys"], n["head_dim"]),
        randn(*lead, n["keys"], n["head_dim_v"]),
        randn(n["queries"], n["keys"]),
    )
    assert_twins_agree(lambda m, q, k, v, b: m.attention(q, k, v, b, return_lse=True, **options), *leaves)


@pytest.mark.parametrize("zero", ZEROS)
def test_any_dimension_of_fuse_may_be_zero(isa, zero):
    n = sized(zero)
    lead = (n["batch"], n["heads"])
    leaves = (
        randn(*lead, n["queries"], n["head_dim"]),
        randn(*lead, n["keys"], n["head_dim"]),
        randn(*lead, n["keys"], n["head_dim_v"]),
        randn(*lead, 4, n["head_dim"]),
        randn(*lead, 4, n["head_dim_v"]),
    )

    def call(m, q, k, v, a, b):
        return m.fuse(q, [Source(k, v), None, Source(a, b)], return_lse=True, return_mass=True)

    assert_twins_agree(call, *leaves)


@pytest.mark.parametrize("zero", ZEROS)
def test_any_dimension_of_packed_sequences_may_be_zero(isa, zero):
    n = sized(zero)
    ends = [torch.arange(n["batch"] + 1, dtype=torch.int32) * n[rows] for rows in ("queries", "keys")]
    leaves = [
        randn(int(end[-1]), n["heads"], n[width])
        for end, width in ((ends[0], "head_dim"), (ends[1], "head_dim"), (ends[1], "head_dim_v"))
    ]

    def call(m, q, k, v):
        return m.attention_varlen(q, k, v, *ends, n["queries"], n["keys"], return_lse=True)

    assert_twins_agree(call, *leaves)


@pytest.mark.parametrize("zero", ["batch", "heads", "queries", "keys", "head_dim"])
@pytest.mark.parametrize("name", ["weighted_sum", "softmax_weighted_sum"])
def test_any_dimension_of_weights_and_values_may_be_zero(isa, name, zero):
    n = sized(zero)
    lead = (n["batch"], n["heads"])
    leaves = randn(*lead, n["queries"], n["keys"]), randn(*lead, n["keys"], n["head_dim"])
    assert_twins_agree(lambda m, w, x: [getattr(m, name)(w, x)], *leaves)


@pytest.mark.parametrize("zero", ["batch", "heads", "queries", "keys", "head_dim"])
@pytest.mark.parametrize(
    "options", [*({"reduce": r} for r in (None, "heads", "keys", "entropy", "mass")), {"topk": 3}], ids=str
)
def test_any_dimension_of_associate_may_be_zero_gradients_too(isa, zero, options):
    n = sized(zero)
    lead = (n["batch"], n["heads"])
    leaves = randn(*lead, n["queries"], n["head_dim"]), randn(*lead, n["keys"], n["head_dim"])

    def call(m, q, k):
        found = m.associate(q, k, **options)
        return found if isinstance(found, tuple) else [found]

    assert_twins_agree(call, *leaves)


SHAPES_OF_ASSOCIATE = {
    None: (2, 4, 5, 14),
    "heads": (2, 5, 14),
    "keys": (2, 4, 14),
    "entropy": (2, 4, 5),
    "mass": (2, 4, 5, 3),
}


@pytest.mark.parametrize("reduce", SHAPES_OF_ASSOCIATE)
def test_summary_of_weights_has_the_promised_shape(reduce):
    sources = [Source(K, V), None, Source(K, V)]
    assert crossmodal.associate(Q, sources, reduce=reduce).shape == SHAPES_OF_ASSOCIATE[reduce]


def test_associate_reads_no_value():
    broken = torch.full_like(V, float("nan"))
    for reduce in SHAPES_OF_ASSOCIATE:
        got, wanted = (crossmodal.associate(Q, [Source(K, v)], reduce=reduce) for v in (broken, V))
        assert torch.equal(got, wanted)


def test_key_and_value_from_one_slice_of_a_projection_share_memory_and_get_both_gradients():
    """What a fused projection gives: views of one tensor, with gaps between their rows."""
    packed = torch.randn(2, 7, 3, 4, 8, requires_grad=True)
    copies = [t.detach().clone().requires_grad_() for t in packed.unbind(2)]
    q, k, v = (t.transpose(1, 2) for t in packed.unbind(2))
    wanted = crossmodal.attention(*(t.transpose(1, 2) for t in copies))
    got = crossmodal.attention(q, k, v)
    assert torch.equal(got, wanted)
    parts = torch.autograd.grad(wanted.square().sum(), copies)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), packed)[0], torch.stack(parts, 2))
