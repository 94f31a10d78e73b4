"""Programs that outlive the process that wrote them: torch.export saved and loaded, AOTInductor's packages,
torch.jit.trace."""

import io
import pickle
import subprocess
import sys

import pytest
import torch

import crossmodal
from crossmodal import FusionResult, Source

Q, K, V = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 6)
SINK, SEED = torch.randn(4), torch.tensor([7])
KEY_LENGTHS, QUERY_LENGTHS = torch.tensor([3, 7]), torch.tensor([5, 2])
ENDS_Q, ENDS_K = torch.tensor([0, 4, 10], dtype=torch.int32), torch.tensor([0, 9, 14], dtype=torch.int32)


def packed(q, k, v, ends_q, ends_k):
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    return crossmodal.attention_varlen(q, k, v, ends_q, ends_k, 6, 9, is_causal=True, return_lse=True)


CALLS = {  # function, arguments
    "attention": (
        lambda q, k, v, s, n, m, seed: crossmodal.attention(
            q, k, v, sink=s, key_lengths=n, query_lengths=m, softcap=2.0, dropout_p=0.3, dropout_seed=seed,
            window_size=(3, 1), return_lse=True,
        ),
        (Q, K, V, SINK, KEY_LENGTHS, QUERY_LENGTHS, SEED),
    ),
    "fuse": (
        lambda q, k, v, n: crossmodal.fuse(q, [Source(k, v, n), None, Source(k[:, :2], v[:, :2])], return_mass=True),
        (Q, K, V, KEY_LENGTHS),
    ),
    "attention_varlen": (packed, (Q, K, V, ENDS_Q, ENDS_K)),
    "weighted_sum": (
        lambda w, x, n: crossmodal.weighted_sum(w, x, lengths=n),
        (torch.rand(2, 4, 5, 7), V, KEY_LENGTHS),
    ),
    "softmax_weighted_sum": (
        lambda s, x, n: crossmodal.softmax_weighted_sum(s, x, lengths=n, scale=0.5),
        (torch.randn(2, 4, 5, 7), V, KEY_LENGTHS),
    ),
    **{
        f"associate {reduce}": (lambda q, k, reduce=reduce: crossmodal.associate(q, k, reduce=reduce), (Q, K))
        for reduce in (None, "heads", "keys", "entropy", "mass")
    },
    "associate topk": (lambda q, k: crossmodal.associate(q, k, topk=3), (Q, K)),
}  # fmt: skip


class Call(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = CALLS[name][0]

    def forward(self, *arguments):
        return self.function(*arguments)


def assert_equal(got, wanted):
    for a, b in zip(*(torch.utils._pytree.tree_leaves(r) for r in (got, wanted)), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_saved_and_loaded_program_of_every_function_gives_the_same_bits(name, tmp_path):
    _, arguments = CALLS[name]
    torch.export.save(torch.export.export(Call(name), arguments), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    assert_equal(loaded(*arguments), Call(name)(*arguments))


@pytest.mark.parametrize("name", ["attention", "fuse", "associate heads", "weighted_sum", "softmax_weighted_sum"])
def test_exported_program_takes_other_batches_and_lengths(name):
    """Sizes that were said to be dynamic are not baked in."""
    _, arguments = CALLS[name]
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} if t.dim() and t.shape[0] == 2 else None for t in arguments)
    program = torch.export.export(Call(name), arguments, dynamic_shapes=(shapes,)).module()
    others = tuple(torch.cat([t, t.flip(0), t]) if s else t for t, s in zip(arguments, shapes, strict=True))
    assert_equal(program(*others), Call(name)(*others))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["attention", "fuse", "associate heads", "weighted_sum", "softmax_weighted_sum"])
def test_dimensions_of_an_export_need_no_bounds(name, strict):
    """Batch, queries and keys, each by its own name and nothing else."""
    _, arguments = CALLS[name]
    batch, queries, keys = (torch.export.Dim(n) for n in ("batch", "queries", "keys"))
    named = {2: batch, 5: queries, 7: keys}  # the sizes of the tensors above
    shapes = tuple({d: named[n] for d, n in enumerate(t.shape) if n in named} for t in arguments)
    program = torch.export.export(Call(name), arguments, dynamic_shapes=(shapes,), strict=strict).module()

    def resized(tensor, shape):
        for d, dim in shape.items():
            many = {"batch": 3, "queries": 6, "keys": 11}[dim.__name__]
            tensor = tensor.index_select(d, torch.arange(many) % tensor.shape[d])
        return tensor

    others = tuple(resized(t, shape) for t, shape in zip(arguments, shapes, strict=True))
    assert_equal(program(*others), Call(name)(*others))


def test_saved_program_runs_in_a_process_that_imports_crossmodal_alone(tmp_path):
    function, arguments = CALLS["fuse"]
    torch.export.save(torch.export.export(Call("fuse"), arguments), tmp_path / "program.pt2")
    torch.save((arguments, function(*arguments).out), tmp_path / "wanted.pt")
    script = (
        "import sys, torch, crossmodal\n"
        "arguments, wanted = torch.load(sys.argv[2])\n"
        "print(torch.equal(torch.export.load(sys.argv[1]).module()(*arguments).out, wanted))\n"
    )
    files = [str(tmp_path / name) for name in ("program.pt2", "wanted.pt")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


class Everything(torch.nn.Module):
    """Every function, with and without masks."""

    def forward(self, q, k, v, lengths, mask, ends_q, ends_k):
        scores = q @ k.transpose(2, 3)
        fused = crossmodal.fuse(q, [Source(k, v, lengths), Source(k, v)], return_lse=True, return_mass=True)
        return (
            *fused,
            crossmodal.attention(q, k, v),
            crossmodal.attention(q, k, v, mask, key_lengths=lengths, is_causal=True),
            *packed(q, k, v, ends_q, ends_k),
            crossmodal.weighted_sum(scores, v, lengths=lengths),
            crossmodal.softmax_weighted_sum(scores, v, lengths=lengths),
            crossmodal.associate(q, k, reduce="entropy"),
            *crossmodal.associate(q, k, topk=3, attn_mask=mask),
        )


@pytest.mark.slow
def test_package_of_aotinductor_gives_what_eager_gives(tmp_path):
    arguments = (Q, K, V, KEY_LENGTHS, torch.rand(5, 7) < 0.7, ENDS_Q, ENDS_K)
    program = torch.export.export(Everything(), arguments)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "everything.pt2"))
    result = torch._inductor.aoti_load_package(path)(*arguments)
    torch.testing.assert_close(tuple(result), Everything()(*arguments))


def test_exported_call_without_a_mask_hands_no_empty_list_to_an_operator():
    """AOTInductor would make None of it."""
    for name in ("attention", "fuse", "associate None"):
        graph = torch.export.export(Call(name), CALLS[name][1]).graph
        calls = [node for node in graph.nodes if str(node.target).startswith("crossmodal")]
        assert calls and all(argument != [] for node in calls for argument in node.args)


@pytest.mark.parametrize(
    "value",
    [Source(Q, K, KEY_LENGTHS), Source(Q, K, bias=Q), FusionResult(Q), FusionResult(Q, K, V)],
    ids=lambda v: v._fields[0],
)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tuples_survive_pickle(value, protocol):
    found = pickle.loads(pickle.dumps(value, protocol))
    assert type(found) is type(value)
    assert_equal(found, value)


def test_source_has_its_fields_in_this_order_and_may_be_key_and_value_alone():
    assert Source._fields == ("key", "value", "lengths", "mask", "bias")
    assert Source(Q, K)[2:] == (None, None, None)


def test_fusion_result_is_a_named_tuple_of_out_lse_and_mass():
    assert FusionResult._fields == ("out", "lse", "mass")
    assert FusionResult(Q)[1:] == (None, None)


TRACED = {
    "attention": lambda q, k: crossmodal.attention(q, k, k),
    "lengths": lambda q, k: crossmodal.attention(q, k, k, key_lengths=KEY_LENGTHS),
    "fuse": lambda q, k: crossmodal.fuse(q, [Source(k, k, KEY_LENGTHS), Source(q, q)], return_mass=True).mass,
    "associate": lambda q, k: crossmodal.associate(q, k),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", TRACED)
def test_traced_calls_are_saved_and_give_the_same(name):
    """Of plain torch alone, also where gradients are wanted."""
    q, k = Q.clone().requires_grad_(), K.clone().requires_grad_()
    traced = torch.jit.trace(TRACED[name], (q, k))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(2 * q, k), TRACED[name](2 * q, k))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_module_hides_the_padding_that_it_is_given(monkeypatch):
    monkeypatch.setattr("crossmodal.nn._products.WORTHWHILE", 0)

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = crossmodal.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, padding):
            return self.attend(x, x, x, key_padding_mask=padding, need_weights=False)[0]

    call = Call()
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [2], [1]])
    traced = torch.jit.trace(call, (x, padding))
    torch.testing.assert_close(traced(x, padding.flip(0)), call(x, padding.flip(0)))
