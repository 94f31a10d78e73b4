"""Jagged nested tensors in `attention`: what each sample gives alone, as nested as it came."""

import pytest
import torch
import torch.nn.functional as F

import crossmodal
from crossmodal import reference

ROWS, KEYS = (3, 5, 0, 1), (4, 2, 7, 0)
INF = float("inf")

OPTIONS = {
    "nothing": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "lower_right": {"is_causal": True, "causal_align": "lower_right"},
    "window": {"window_size": (1, 2)},
    "softcap": {"softcap": 0.8},
    "sink": {"sink": torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)},
}

namespaces = pytest.mark.parametrize("namespace", [crossmodal, reference], ids=["operator", "reference"])


def nested(samples, requires_grad=False):
    return torch.nested.nested_tensor(samples, layout=torch.jagged, requires_grad=requires_grad)


def jagged(lengths, *inner, dtype=torch.float64, requires_grad=False):
    """(batch, j, *inner); a leaf."""
    return nested([torch.randn(n, *inner, dtype=dtype) for n in lengths], requires_grad)


def qkv(heads_k=4, width_v=2, dtype=torch.float64, requires_grad=False):
    """Leaves (batch, j, num_heads, head_dim): query's lengths are ROWS, those of key and value KEYS."""
    query = jagged(ROWS, 4, 3, dtype=dtype, requires_grad=requires_grad)
    key = jagged(KEYS, heads_k, 3, dtype=dtype, requires_grad=requires_grad)
    rows = torch.randn(sum(KEYS), heads_k, width_v, dtype=dtype)
    value = torch.nested.nested_tensor_from_jagged(rows, key.offsets(), max_seqlen=max(KEYS))
    return query, key, value.detach().requires_grad_(requires_grad)


def heads_first(*tensors):
    return [t.transpose(1, 2) for t in tensors]


def sample_by_sample(namespace, q, k, v, **options):
    """(out, lse) of each sample, as `attention` gives them alone."""
    samples = zip(q.unbind(), k.unbind(), v.unbind(), strict=True)
    return [[t[0] for t in namespace.attention(*(x[None] for x in s), **options, return_lse=True)] for s in samples]


def assert_same_samples(got, wanted):
    for a, b in zip(got.unbind(), wanted, strict=True):
        torch.testing.assert_close(a, b)


@namespaces
@pytest.mark.parametrize("name", OPTIONS)
def test_each_sample_gets_what_it_gets_alone(name, namespace):
    q, k, v = heads_first(*qkv())
    out, lse = namespace.attention(q, k, v, **OPTIONS[name], return_lse=True)
    wanted = sample_by_sample(namespace, q, k, v, **OPTIONS[name])
    assert_same_samples(out, [o for o, _ in wanted])
    assert_same_samples(lse, [stats for _, stats in wanted])


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_query_attention_of_each_sample(heads_k):
    q, k, v = heads_first(*qkv(heads_k))
    wanted = sample_by_sample(crossmodal, q, k, v, enable_gqa=True)
    assert_same_samples(crossmodal.attention(q, k, v, enable_gqa=True), [o for o, _ in wanted])


def test_samples_without_heads():
    q, k = jagged(ROWS, 3), jagged(KEYS, 3)
    out, lse = crossmodal.attention(q, k, k, return_lse=True)
    assert out.shape == q.shape and lse.dim() == 2
    wanted = sample_by_sample(crossmodal, q, k, k)
    assert_same_samples(out, [o for o, _ in wanted])
    assert_same_samples(lse, [stats for _, stats in wanted])


def test_equals_sdpa_on_nested_tensors():
    leaves = [jagged((3, 5, 1), 4, 8, dtype=torch.float32, requires_grad=True) for _ in range(3)]
    offsets = leaves[0].offsets()
    shared = [torch.nested.nested_tensor_from_jagged(t.values(), offsets, max_seqlen=5) for t in leaves]
    q, k, v = heads_first(*shared)
    got, wanted = (f(q, k, v) for f in (crossmodal.attention, F.scaled_dot_product_attention))
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.values(), wanted.values())
    gradients = [torch.autograd.grad(out.values().square().sum(), leaves, retain_graph=True) for out in (got, wanted)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.values(), b.values())


def test_output_keeps_the_offsets_of_query():
    q, k, v = heads_first(*qkv(width_v=3))
    out, lse = crossmodal.attention(q, k, v, return_lse=True)
    assert out.offsets() is q.offsets() and lse.offsets() is q.offsets()
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    assert_same_samples(out + q, [a + b for a, b in zip(out.unbind(), q.unbind(), strict=True)])


def test_output_has_the_memory_order_of_query():
    q, k, v = heads_first(*qkv())
    out = crossmodal.attention(q, k, v)
    assert out.transpose(1, 2).values().is_contiguous()


def test_samples_made_with_heads_first_are_taken_too():
    q, k = (nested([torch.randn(2, n, 3) for n in lengths]) for lengths in ((3, 5), (4, 1)))
    wanted = sample_by_sample(crossmodal, q, k, k)
    assert_same_samples(crossmodal.attention(q, k, k), [o for o, _ in wanted])


@namespaces
def test_gradients_flow_to_nested_leaves(namespace):
    leaves = qkv(requires_grad=True)
    out, lse = namespace.attention(*heads_first(*leaves), is_causal=True, return_lse=True)
    finite = lse.values().masked_fill(lse.values() == -INF, 0)
    got = torch.autograd.grad(out.values().square().sum() + finite.sum(), leaves)

    samples = [[t.detach().requires_grad_() for t in leaf.unbind()] for leaf in leaves]
    loss = torch.zeros((), dtype=torch.float64)
    for q, k, v in zip(*samples, strict=True):
        part = [t.transpose(0, 1)[None] for t in (q, k, v)]
        out, lse = namespace.attention(*part, is_causal=True, return_lse=True)
        loss = loss + out.square().sum() + lse.masked_fill(lse == -INF, 0).sum()
    for gradient, leaf, parts in zip(got, leaves, samples, strict=True):
        assert gradient.shape == leaf.shape
        assert_same_samples(gradient, torch.autograd.grad(loss, parts, retain_graph=True))


def test_one_nested_tensor_attends_to_itself():
    x = jagged((3, 5), 2, 4, requires_grad=True)
    h = x.transpose(1, 2)
    out = crossmodal.attention(h, h, h)
    assert_same_samples(out, [o for o, _ in sample_by_sample(crossmodal, h, h, h)])
    assert torch.autograd.grad(out.values().sum(), x)[0].shape == x.shape


def test_dropout_draws_the_mask_of_the_padded_batch():
    q, k, v = heads_first(*qkv())
    options = {"dropout_p": 0.4, "dropout_seed": torch.tensor([7])}
    lengths = {"query_lengths": q.offsets().diff(), "key_lengths": k.offsets().diff()}
    dense = [torch.zeros(len(ROWS), 4, max(n), t.shape[-1]).double() for n, t in ((ROWS, q), (KEYS, k), (KEYS, v))]
    for b in range(len(ROWS)):
        for into, tensor in zip(dense, (q, k, v), strict=True):
            sample = tensor.unbind()[b]
            into[b, :, : sample.shape[1]] = sample
    wanted = crossmodal.attention(*dense, **lengths, **options)
    got = crossmodal.attention(q, k, v, **options)
    assert_same_samples(got, [wanted[b, :, :n] for b, n in enumerate(ROWS)])


def test_max_seqlen_need_not_be_known():
    q, k, v = qkv()
    wanted = crossmodal.attention(*heads_first(q, k, v))
    unknown = [torch.nested.nested_tensor_from_jagged(t.values(), t.offsets().clone()) for t in (q, k, v)]
    torch.testing.assert_close(crossmodal.attention(*heads_first(*unknown)).values(), wanted.values())


def test_offsets_may_be_int32():
    rows, offsets = torch.randn(8, 2, 4), torch.tensor([0, 3, 8])
    wide, narrow = (
        torch.nested.nested_tensor_from_jagged(rows, o, max_seqlen=5).transpose(1, 2) for o in (offsets, offsets.int())
    )
    wanted = crossmodal.attention(wide, wide, wide)
    assert torch.equal(crossmodal.attention(narrow, narrow, narrow).values(), wanted.values())


def test_autocast_runs_in_the_autocast_dtype():
    q, k, v = heads_first(*qkv(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = crossmodal.attention(q, k, v, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


@pytest.mark.parametrize("known", [True, False], ids=["max_seqlen_known", "max_seqlen_unknown"])
def test_compiled_in_one_graph_it_equals_eager(known):
    torch._dynamo.reset()
    leaves = qkv(width_v=3, dtype=torch.float32, requires_grad=True)
    if not known:
        shared = leaves[1].offsets().clone()
        offsets = (leaves[0].offsets().clone(), shared, shared)
        unknown = [
            torch.nested.nested_tensor_from_jagged(t.values().detach(), o) for t, o in zip(leaves, offsets, strict=True)
        ]
        leaves = [t.detach().requires_grad_() for t in unknown]

    def attention(q, k, v):
        q, k, v = heads_first(q, k, v)
        return crossmodal.attention(q, k, v, is_causal=True) + q

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(*leaves), attention(*leaves)
    torch.testing.assert_close(got.values(), wanted.values())
    gradients = [torch.autograd.grad(out.values().square().sum(), leaves) for out in (got, wanted)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.values(), b.values())


DENSE = torch.zeros(4, 4, 5, 3)
MASK = torch.ones(1, dtype=torch.bool)


def holes(tensor):
    lengths = tensor.offsets().diff().clamp_max(1)
    return torch.nested.nested_tensor_from_jagged(tensor.values(), tensor.offsets(), lengths)


def strided():
    return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.strided)


ALL_OR_NONE = "query, key and value are all nested or all dense"
AS = "nested as (batch, num_heads, j, head_dim), which is (batch, j, num_heads, head_dim).transpose(1, 2), or as"

BAD_CALLS = {
    "dense key": (
        lambda f, q, k, v: f(q, DENSE, v),
        ValueError,
        f"key must be nested as the others are, got a dense tensor of shape (4, 4, 5, 3): {ALL_OR_NONE}",
    ),
    "dense query": (
        lambda f, q, k, v: f(DENSE, k, v),
        ValueError,
        f"query must be nested as the others are, got a dense tensor of shape (4, 4, 5, 3): {ALL_OR_NONE}",
    ),
    "value of another type": (
        lambda f, q, k, v: f(q, k, [1.0]),
        TypeError,
        "value must be a torch.Tensor, got list",
    ),
    "strided layout": (
        lambda f, q, k, v: f(strided(), strided(), strided()),
        ValueError,
        "query must be a nested tensor of layout torch.jagged, got torch.strided",
    ),
    "holes": (
        lambda f, q, k, v: f(q, *(holes(t.transpose(1, 2)).transpose(1, 2) for t in (k, v))),
        ValueError,
        "key must be a nested tensor without holes, got one that has lengths()",
    ),
    "heads behind the sequence": (
        lambda f, q, k, v: f(*(t.transpose(1, 2) for t in (q, k, v))),
        ValueError,
        f"query must be {AS} (batch, j, head_dim), got 4 dimensions of which dimension 1 is ragged",
    ),
    "one has heads": (
        lambda f, q, k, v: f(q, jagged(KEYS, 3), v),
        ValueError,
        "key must have query's 4 dimensions, got 3",
    ),
    "batch": (
        lambda f, q, k, v: f(q, *(jagged((2, 3), 4, n).transpose(1, 2) for n in (3, 2))),
        ValueError,
        "key must have query's batch 4, got 2",
    ),
    "lengths of value": (
        lambda f, q, k, v: f(q, k, jagged((7, 2, 4, 0), 4, 2).transpose(1, 2)),
        ValueError,
        "value must have key's sequence lengths [4, 2, 7, 0], got [7, 2, 4, 0]",
    ),
    "mask": (
        lambda f, q, k, v: f(q, k, v, MASK),
        ValueError,
        "attn_mask must be None beside nested tensors: use is_causal and window_size, or padded tensors",
    ),
    "key_lengths": (
        lambda f, q, k, v: f(q, k, v, key_lengths=torch.tensor(KEYS)),
        ValueError,
        "key_lengths must be None beside nested tensors: they have their own",
    ),
    "query_lengths": (
        lambda f, q, k, v: f(q, k, v, query_lengths=torch.tensor(ROWS)),
        ValueError,
        "query_lengths must be None beside nested tensors: they have their own",
    ),
    "heads": (
        lambda f, q, k, v: f(q, *heads_first(*qkv(heads_k=2)[1:])),
        ValueError,
        "key must have query's num_heads 4, or enable_gqa=True, got 2",
    ),
    "dtype": (
        lambda f, q, k, v: f(q, k.float(), v),
        TypeError,
        "key must have query's dtype torch.float64, got torch.float32",
    ),
}


@namespaces
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_named(name, namespace):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error) as caught:
        call(namespace.attention, *heads_first(*qkv()))
    assert str(caught.value) == message
