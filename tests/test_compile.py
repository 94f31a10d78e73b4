"""torch.compile, export, autocast: every function traces whole and gives what eager gives."""

import pytest
import torch

import crossmodal
from crossmodal import Source

Q, K, V = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 6)
LENGTHS = torch.tensor([3, 7])


def fuse(q, k, v):
    result = crossmodal.fuse(
        q,
        [Source(k, v, LENGTHS), None, Source(v[..., :6].repeat(1, 1, 1, 2)[..., :8], v)],
        return_lse=True,
        return_mass=True,
    )
    return result.out.sum() + result.lse.sum() + result.mass[..., 0].square().sum()


def varlen(q, k, v):
    """The samples laid one after the other, as sequences of 2 and 7 queries, 3 and 9 keys."""
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    ends = (torch.tensor([0, n, m], dtype=torch.int32) for n, m in ((2, 9), (3, 12)))
    out, lse = crossmodal.attention_varlen(q, k, v, *ends, 7, 9, is_causal=True, return_lse=True)
    return out.sum() + lse[:, :9].square().sum()


FUNCTIONS = {
    "attention": lambda q, k, v: crossmodal.attention(q, k, v, key_lengths=LENGTHS),
    "attention with a mask": lambda q, k, v: crossmodal.attention(q, k, v, (q @ k.transpose(2, 3)).tanh()),
    "causal attention": lambda q, k, v: crossmodal.attention(q, k, v, is_causal=True, return_lse=True)[1],
    "one tensor in three slots": lambda q, k, v: crossmodal.attention(q, q, q),
    "a source that is its own value": lambda q, k, v: crossmodal.fuse(q, [Source(k, k), Source(k, k)]).out,
    "fuse": fuse,
    "attention_varlen": varlen,
    "packed tensor in three slots": lambda q, k, v: crossmodal.attention_varlen(
        q[0], q[0], q[0], *[torch.tensor([0, 1, 3], dtype=torch.int32)] * 2, 2, 2
    ),
    "weighted_sum": lambda q, k, v: crossmodal.weighted_sum((q @ k.transpose(2, 3)).softmax(-1), v, lengths=LENGTHS),
    "softmax_weighted_sum": lambda q, k, v: crossmodal.softmax_weighted_sum(q @ k.transpose(2, 3), v, lengths=LENGTHS),
    "softmax_weighted_sum of one tensor": lambda q, k, v: crossmodal.softmax_weighted_sum(q[..., :5], q[..., :5]),
    "associate": lambda q, k, v: crossmodal.associate(q, k, reduce="heads"),
    "a call that no kernel takes": lambda q, k, v: crossmodal.attention(q, k, v, softcap=2.0),
}


def gradients(function, *tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    loss = function(*leaves).square().sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [loss.detach(), *(torch.zeros(()) if g is None else g for g in found)]


def assert_close(got, wanted):
    """Up to rounding, which scales with a tensor's largest element: small ones are differences of large ones."""
    scale = max(1.0, float(wanted.detach().abs().max()))
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_in_one_graph_it_equals_eager(name):
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, Q, K, V), gradients(FUNCTIONS[name], Q, K, V), strict=True):
        assert_close(got, wanted)


def test_topk_compiles_in_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k: crossmodal.associate(q, k, topk=3), fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(Q, K), crossmodal.associate(Q, K, topk=3), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fuse", "attention_varlen", "softmax_weighted_sum"])
def test_inductor_equals_eager(name):
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True)
    for got, wanted in zip(gradients(compiled, Q, K, V), gradients(function, Q, K, V), strict=True):
        assert_close(got, wanted)


def test_other_sequence_lengths_need_one_more_compilation():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda q, k, v: crossmodal.attention(q, k, v), fullgraph=True, backend=counter)
    for seqlen in (5, 6, 9, 17, 33):
        k = torch.randn(2, 3, seqlen, 8)
        assert compiled(Q, k, k).shape == Q.shape
    assert counter.frame_count == 2  # one for a fixed length, one for all of them


DYNAMIC = {
    "attention": lambda q, k, v: crossmodal.attention(q, k, v),
    "scale from a shape": lambda q, k, v: crossmodal.attention(q, k, v, scale=q.shape[-1] ** -0.5),
    "fuse": lambda q, k, v: crossmodal.fuse(q, [Source(k, v, mask=k[:, :1, None, :, 0] > 0), Source(k, v)]).out,
    "attention_varlen": lambda q, k, v: crossmodal.attention_varlen(
        *(t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)),
        *(torch.tensor([0, 1, 3], dtype=torch.int32),) * 2,
        q.shape[2],
        k.shape[2],
    ),
    "weighted_sum": lambda q, k, v: crossmodal.weighted_sum(q @ k.transpose(2, 3), v),
    "softmax_weighted_sum": lambda q, k, v: crossmodal.softmax_weighted_sum(q @ k.transpose(2, 3), v),
    "associate": lambda q, k, v: crossmodal.associate(q, k, reduce="heads"),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_with_dynamic_shapes_it_equals_eager(name):
    torch._dynamo.reset()
    compiled = torch.compile(DYNAMIC[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, seqlen_q, seqlen_k, head_dim in ((2, 5, 7, 8), (3, 9, 4, 16), (2, 600, 3, 5)):
        q, k = torch.randn(batch, 3, seqlen_q, head_dim), torch.randn(batch, 3, seqlen_k, head_dim)
        v = torch.randn(batch, 3, seqlen_k, 6)
        for got, wanted in zip(gradients(compiled, q, k, v), gradients(DYNAMIC[name], q, k, v), strict=True):
            assert_close(got, wanted)


def test_exported_program_gives_the_same():
    class Fusion(torch.nn.Module):
        def forward(self, q, k, v, lengths):
            return crossmodal.fuse(q, [Source(k, v, lengths)], return_mass=True)

    program = torch.export.export(Fusion(), (Q, K, V, LENGTHS))
    got = program.module()(Q, K, V, LENGTHS)
    wanted = Fusion()(Q, K, V, LENGTHS)
    assert torch.equal(got.out, wanted.out) and torch.equal(got.mass, wanted.mass) and got.lse is None


def test_saved_program_that_takes_sources_and_returns_a_fusion_result_gives_the_same(tmp_path):
    class Fusion(torch.nn.Module):
        def forward(self, q, sources):
            return crossmodal.fuse(q, sources, return_mass=True)

    arguments = (Q, [Source(K, V, LENGTHS), Source(K, V)])
    torch.export.save(torch.export.export(Fusion(), arguments), tmp_path / "fusion.pt2")
    got = torch.export.load(tmp_path / "fusion.pt2").module()(*arguments)
    wanted = Fusion()(*arguments)
    assert isinstance(got, crossmodal.FusionResult) and got.lse is None
    assert torch.equal(got.out, wanted.out) and torch.equal(got.mass, wanted.mass)


@pytest.mark.parametrize("cls", [Source, crossmodal.FusionResult], ids=lambda cls: cls.__name__)
def test_saved_programs_know_the_tuples_by_names_that_stay(cls):
    _, spec = torch.utils._pytree.tree_flatten(cls(Q, K))
    assert f'"crossmodal.{cls.__name__}"' in torch.utils._pytree.treespec_dumps(spec)


@pytest.mark.parametrize("value", [Source(Q, K), crossmodal.FusionResult(Q)], ids=lambda value: type(value).__name__)
def test_tuples_in_a_checkpoint_load_as_weights(value, tmp_path):
    torch.save(value, tmp_path / "tuple.pt")
    loaded = torch.load(tmp_path / "tuple.pt", weights_only=True)
    assert type(loaded) is type(value) and torch.equal(loaded[0], value[0])


def exported(function, *arguments):
    """What the exported program gives."""

    class Module(torch.nn.Module):
        def forward(self, *x):
            return function(*x)

    return torch.export.export(Module(), arguments).module()(*arguments)


def test_exported_attention_varlen_gives_the_same():
    def attention(q, k, ends_q, ends_k):
        return crossmodal.attention_varlen(q, k, k, ends_q, ends_k, 7, 9, return_lse=True)

    ends = [torch.tensor(e, dtype=torch.int32) for e in ([0, 2, 9], [0, 3, 12])]
    arguments = (torch.randn(10, 3, 8), torch.randn(14, 3, 8), *ends)
    torch.testing.assert_close(exported(attention, *arguments), attention(*arguments))


def test_exported_softmax_weighted_sum_gives_the_same():
    def weighted(s, x, lengths):
        return crossmodal.softmax_weighted_sum(s, x, lengths=lengths, scale=0.5)

    arguments = (torch.randn(2, 3, 5, 7), V, LENGTHS)
    torch.testing.assert_close(exported(weighted, *arguments), weighted(*arguments))


def test_autocast_runs_in_the_autocast_dtype():
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = crossmodal.attention(Q, K, V, return_lse=True)
        assert crossmodal.attention(Q.double(), K.double(), V.double()).dtype == torch.float64
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


def test_lengths_beyond_the_keys_are_clamped_where_values_cannot_be_read():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda k, n: crossmodal.attention(Q, k, k, key_lengths=n), fullgraph=True, backend="aot_eager"
    )
    got = compiled(K, torch.tensor([-5, 700]))
    assert torch.equal(got, crossmodal.attention(Q, K, K, key_lengths=torch.tensor([0, 7])))
