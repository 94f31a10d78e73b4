"""sdpa() and enable_sdpa(): calls of SDPA in any model run our kernels; what is refused goes on to torch."""

import copy
import logging
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import crossmodal
from crossmodal import dispatch
from tests.tolerance import assert_as_accurate, eps_of

TORCHS = F.scaled_dot_product_attention
WAYS = {"sdpa": crossmodal.sdpa, "enable_sdpa": crossmodal.enable_sdpa}
Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)


@pytest.fixture
def calls(monkeypatch):
    """Counts what reaches our operator."""
    module, seen = sys.modules["crossmodal.sdpa"], []
    attention = crossmodal.attention
    monkeypatch.setattr(module, "attention", lambda *a: seen.append(a) or attention(*a))
    return seen


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def test_calls_come_here_and_no_longer_afterwards(way, calls):
    with way():
        F.scaled_dot_product_attention(Q, K, K)
        torch.nn.functional.scaled_dot_product_attention(Q, K, value=K, is_causal=True)
        assert len(calls) == 2
    assert F.scaled_dot_product_attention is TORCHS
    F.scaled_dot_product_attention(Q, K, K)
    assert len(calls) == 2


OPTIONS = {
    "mask": {"attn_mask": torch.rand(2, 1, 5, 7) < 0.9},
    "float mask": {"attn_mask": torch.randn(5, 7)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.2},
    "mask and causal": {"attn_mask": torch.arange(7) % 3 == torch.zeros(5, 1), "is_causal": True},
    "nothing": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gives_what_torch_gives(name, way):
    wanted = TORCHS(Q, K, K, **OPTIONS[name])
    with way(), crossmodal.strict():
        torch.testing.assert_close(F.scaled_dot_product_attention(Q, K, K, **OPTIONS[name]), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gradient", ["backward", "grad"])
def test_checkpointed_layers_compute_again_what_they_computed(gradient, reentrant, way, calls):
    """Dropout draws the same numbers once more only where the same function draws them."""
    value = torch.randn(2, 4, 7, 8, requires_grad=True)

    def layer(value):
        return F.scaled_dot_product_attention(Q, K, value, dropout_p=0.5)

    def slope(function):
        torch.manual_seed(0)
        out = function(value).square().sum()
        if gradient == "grad" and not reentrant:  # which torch's other checkpoint does not know
            return torch.autograd.grad(out, value)[0]
        value.grad = None
        out.backward()
        return value.grad

    with way():
        wanted = slope(layer)
        reached = len(calls)
        got = slope(lambda v: torch.utils.checkpoint.checkpoint(layer, v, use_reentrant=reentrant))
    assert len(calls) == 3 * reached == 3
    torch.testing.assert_close(got, wanted)


def test_checkpoint_is_computed_again_where_others_have_wrapped_backward(way, calls, monkeypatch):
    whole = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *args, **more: whole(self, *args, **more))
    q = Q.clone().requires_grad_()
    with way():
        torch.utils.checkpoint.checkpoint(
            lambda q: F.scaled_dot_product_attention(q, K, K), q, use_reentrant=False
        ).sum().backward()
    assert len(calls) == 2


def test_backward_that_others_wrapped_before_runs():
    """Where the wrapper does not say what it wraps, it is asked for once more, as within any mode of torch."""
    program = (
        "import functools, torch\n"
        "whole, times = torch.Tensor.backward, []\n"
        "{}\n"
        "def wrapper(self, *args, **more):\n"
        "    times.append(1)\n"
        "    return whole(self, *args, **more)\n"
        "torch.Tensor.backward = wrapper\n"
        "import crossmodal\n"
        "x = torch.ones(3, requires_grad=True)\n"
        "with crossmodal.sdpa():\n"
        "    x.sum().backward()\n"
        "assert len(times) == {} and x.grad.sum() == 3\n"
    )
    for decorator, times in (("@functools.wraps(whole)", 1), ("", 2)):
        subprocess.run([sys.executable, "-c", program.format(decorator, times)], check=True)


def test_grouped_queries(way, calls):
    k = K[:, :2]
    with way():
        got = F.scaled_dot_product_attention(Q, k, k, enable_gqa=True)
    torch.testing.assert_close(got, TORCHS(Q, k, k, enable_gqa=True))
    assert len(calls) == 1


@pytest.mark.parametrize("ends", ["normally", "by an error"])
def test_fast_path_of_torch_is_off_within_and_restored(way, ends):
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        with way():
            assert not torch.backends.mha.get_fastpath_enabled()
            if ends == "by an error":
                raise KeyError
    except KeyError:
        pass
    assert torch.backends.mha.get_fastpath_enabled() is before is True


def test_a_fast_path_that_was_off_stays_off(way):
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with way():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


MODELS = {
    "MultiheadAttention": (lambda: nn.MultiheadAttention(16, 2, batch_first=True), 3, {"need_weights": False}, 1),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1, {}, 1),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2, {}, 2),
}


@pytest.mark.parametrize("training", [False, True], ids=["answering", "training"])
@pytest.mark.parametrize("name", MODELS)
def test_modules_of_torch_come_here_by_every_path(name, training, way, calls):
    build, count, options, expected = MODELS[name]
    module = build()
    for part in module.modules():
        if hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0.0
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    module.train(training)
    x = torch.randn(3, 5, 16)

    def call(module, dtype):
        out = module(*[x.to(dtype)] * count, **options)
        return (out[0] if isinstance(out, tuple) else out).detach()

    exact, reference = call(copy.deepcopy(module).double(), torch.float64), call(module, torch.float32)
    with way():
        got = call(module, torch.float32)
    assert len(calls) == expected
    assert_as_accurate("out", got, [reference], exact.numpy(), eps_of(torch.float32))


def test_gradients_come_back(way):
    def gradient():
        leaves = [t.clone().requires_grad_() for t in (Q, K)]
        return torch.autograd.grad(F.scaled_dot_product_attention(*leaves, leaves[1]).square().sum(), leaves)

    wanted = gradient()
    with way():
        for got, there in zip(gradient(), wanted, strict=True):
            torch.testing.assert_close(got, there)


REFUSED = {
    "device": (lambda: F.scaled_dot_product_attention(*[Q.to("meta")] * 3), "no kernel for device type 'meta' yet"),
    "shapes that torch alone takes": (
        lambda: F.scaled_dot_product_attention(*[Q[None, None]] * 3),
        "query must have 2 to 5 dimensions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_goes_to_torch_with_one_line_that_says_why(name, way, caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_told", set())
    call, reason = REFUSED[name]
    wanted = call()
    with way(), caplog.at_level(logging.WARNING, "crossmodal"):
        got = call()
        call()
    for g, w in zip(*(torch.utils._pytree.tree_leaves(r) for r in (got, wanted)), strict=True):
        assert g.is_meta or torch.equal(g, w)
    (record,) = caplog.records
    assert record.getMessage().startswith("sdpa runs in plain torch: ") and reason in record.getMessage()
    with way(), crossmodal.strict(), pytest.raises(RuntimeError, match=reason):
        call()


ERRORS = {
    "head_dim": lambda: F.scaled_dot_product_attention(Q, K[..., :4], K),
    "mask": lambda: F.scaled_dot_product_attention(Q, K, K, torch.ones(4, 7).bool()),
    "type": lambda: F.scaled_dot_product_attention(Q, None, K),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_torchs(name, way):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        ERRORS[name]()
    with way(), pytest.raises(type(theirs.value)) as ours:
        ERRORS[name]()
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_forward_mode_which_torch_lacks(way):
    with way():
        got = torch.func.jvp(lambda q: F.scaled_dot_product_attention(q, K, K), (Q,), (Q,))
    torch.testing.assert_close(got, torch.func.jvp(lambda q: crossmodal.reference.attention(q, K, K), (Q,), (Q,)))


def test_jagged_tensors_come_here(way, calls):
    nested = torch.nested.nested_tensor([torch.randn(3, 2, 8), torch.randn(5, 2, 8)], layout=torch.jagged)
    q = nested.transpose(1, 2)
    wanted = TORCHS(q, q, q)
    with way():
        got = F.scaled_dot_product_attention(q, q, q)
    assert len(calls) == 1
    for g, w in zip(got.unbind(), wanted.unbind(), strict=True):
        torch.testing.assert_close(g, w)


def test_compiled_within_it_holds_our_operator(way):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    with way():
        compiled = torch.compile(lambda q: F.scaled_dot_product_attention(q, K, K), fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(Q), TORCHS(Q, K, K))
    assert "crossmodal" in graphs[0].code
    torch.testing.assert_close(compiled(Q), TORCHS(Q, K, K))
    assert len(graphs) == 2 and "crossmodal" not in graphs[1].code


def test_exported_within_it_holds_our_operator(way):
    class Model(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, K, K)

    with way():
        program = torch.export.export(Model(), (Q,))
    assert any("crossmodal" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(Q), TORCHS(Q, K, K))


def test_default_device_does_not_get_in_the_way(calls):
    """It is a mode of the same kind."""
    mha, x = nn.MultiheadAttention(16, 2), torch.randn(5, 3, 16)
    try:
        torch.set_default_device("cpu")
        with crossmodal.sdpa():
            mha(x, x, x, need_weights=False)
            F.scaled_dot_product_attention(Q, K, K)
    finally:
        torch.set_default_device(None)
    assert len(calls) == 2


def test_mode_is_of_this_thread_and_enabling_is_of_all(calls):
    def in_thread():
        thread = threading.Thread(target=lambda: F.scaled_dot_product_attention(Q, K, K))
        thread.start()
        thread.join()

    with crossmodal.sdpa():
        in_thread()
    assert len(calls) == 0
    with crossmodal.enable_sdpa():
        in_thread()
    assert len(calls) == 1


def test_enabling_ends_with_the_last_handle():
    first, second = crossmodal.enable_sdpa(), crossmodal.enable_sdpa()
    first.remove()
    first.remove()
    assert F.scaled_dot_product_attention is not TORCHS
    second.remove()
    assert F.scaled_dot_product_attention is TORCHS


def test_fast_path_stays_off_until_the_last_of_several_ends_in_whatever_order(calls):
    """A model of torch would pass by who is still there, or lose its fast path for good."""
    encoder, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(3, 5, 16)
    first = crossmodal.sdpa()
    first.__enter__()
    handle = crossmodal.enable_sdpa()
    first.__exit__(None, None, None)
    with torch.no_grad():
        encoder(x)
    assert len(calls) == 1 and not torch.backends.mha.get_fastpath_enabled()
    handle.remove()
    assert torch.backends.mha.get_fastpath_enabled()


def test_fast_path_of_two_threads_that_overlap():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with crossmodal.sdpa():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with crossmodal.sdpa():
        thread.start()
        assert entered.wait(60)
    assert not torch.backends.mha.get_fastpath_enabled()  # the other one is still within
    leave.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()


def test_both_at_once(calls):
    with crossmodal.enable_sdpa(), crossmodal.sdpa():
        F.scaled_dot_product_attention(Q, K, K)
    assert len(calls) == 1 and F.scaled_dot_product_attention is TORCHS


CUDA = {  # head_dim, whether this build has kernels, what torch is told
    "narrow": (64, True, None),
    "too wide": (512, True, "CUDA kernels take a head_dim of 256 at most, got 512"),
    "no kernels": (64, False, "this build has no CUDA kernels"),
}


@pytest.mark.parametrize("name", CUDA)
def test_cuda_tensors_come_here_where_there_are_kernels_for_them(name, way, calls, caplog, monkeypatch):
    """Shapes alone: no GPU is asked."""
    head_dim, has_kernels, reason = CUDA[name]
    monkeypatch.setattr(dispatch, "HAS_CUDA_KERNELS", has_kernels)
    monkeypatch.setattr(dispatch, "_told", set())
    with FakeTensorMode(), way(), caplog.at_level(logging.WARNING, "crossmodal"):
        q, k = torch.empty(2, 4, 5, head_dim, device="cuda"), torch.empty(2, 4, 7, head_dim, device="cuda")
        out = F.scaled_dot_product_attention(q, k, k)
        assert out.shape == q.shape and out.is_cuda
    assert len(calls) == (reason is None)
    assert [r.getMessage() for r in caplog.records] == (
        [] if reason is None else [f"sdpa runs in plain torch: {reason}"]
    )


BIASES = {
    "upper left": (causal_upper_left(5, 7), {}),
    "lower right": (causal_lower_right(5, 7), {}),
    "with a scale": (causal_lower_right(5, 7), {"scale": 0.3}),
}


@pytest.mark.parametrize("name", BIASES)
def test_causal_biases_of_torch_come_here(name, way, calls):
    """Tensors without numbers, which look for torch's function by its name."""
    bias, options = BIASES[name]
    wanted = TORCHS(Q, K, K, bias, **options)
    with way(), crossmodal.strict():
        torch.testing.assert_close(F.scaled_dot_product_attention(Q, K, K, bias, **options), wanted)
    assert len(calls) == 1


def test_causal_bias_of_other_sizes_goes_to_torch_in_its_own_way(way):
    bias = causal_lower_right(5, 9)
    with pytest.raises(RuntimeError) as theirs:
        TORCHS(Q, K, K, bias)
    with way(), pytest.raises(RuntimeError) as ours:
        F.scaled_dot_product_attention(Q, K, K, bias)
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


class Answers(torch.Tensor):
    """A class that has an attention of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return "its own" if func is TORCHS else super().__torch_function__(func, types, args, kwargs or {})


def test_a_class_that_overrides_the_function_keeps_its_own(way, calls):
    q = Q.as_subclass(Answers)
    with way():
        assert F.scaled_dot_product_attention(q, K, K) == "its own"
    assert not calls


@pytest.mark.parametrize("function", [TORCHS, sys.modules["crossmodal.sdpa"].scaled_dot_product_attention])
def test_explain_says_who_would_answer(function):
    plan = crossmodal.explain(function, Q, K, K, is_causal=True)
    assert plan.op == "sdpa" and plan.kernel == crossmodal.explain(crossmodal.attention, Q, K, K, is_causal=True).kernel
    refused = crossmodal.explain(function, *[Q[None, None]] * 3)
    assert refused.kernel == "torch" and "query must have 2 to 5 dimensions" in str(refused)
    assert "device type 'meta'" in str(crossmodal.explain(function, *[Q.to("meta")] * 3))
