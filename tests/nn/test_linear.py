"""Linear layers through oneDNN: torch's numbers, torch's gradients, and the weight as it is now."""

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.utils.flop_counter

import crossmodal
from crossmodal.nn import _products
from crossmodal.nn._linear import linear, refusal
from tests.tolerance import assert_as_accurate, eps_of

packed_weights = sys.modules["crossmodal.nn.packed_weights"]  # whose name the function has


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(_products, "WORTHWHILE", 0)
    monkeypatch.setenv("CROSSMODAL_LINEAR", "onednn")
    monkeypatch.setattr(_products, "_lead", lambda *_: 2.0)


def gradients(function, dtype, *tensors):
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


SHAPES = [((64, 32), 48), ((2, 3, 16), 8), ((16,), 8), ((1, 16), 1), ((5, 1), 3), ((0, 16), 8)]


needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this CPU"
)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_product_and_gradients_are_as_accurate_as_torch(shape, features, bias, dtype, onednn):
    tensors = [torch.randn(shape), torch.randn(features, shape[-1])] + [torch.randn(features)] * bias
    tensors = [t.to(dtype) for t in tensors]
    assert (refusal(*tensors) is None) == (tensors[0].numel() > 0)
    exact, reference = (gradients(F.linear, d, *tensors) for d in (torch.float64, dtype))
    for i, (got, r, e) in enumerate(zip(gradients(linear, dtype, *tensors), reference, exact, strict=True)):
        assert got.dtype == dtype
        assert_as_accurate(str(i), got, [r], e.numpy(), eps_of(dtype))


@pytest.fixture
def packings(monkeypatch):
    """Weights that were packed, in turn."""
    seen = []
    pack = torch.ops.mkldnn._reorder_linear_weight.default
    operators = SimpleNamespace(default=lambda *a: seen.append(a[0]) or pack(*a))
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", operators)
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["whole", "slice", "transposed"])
def test_packed_weight_is_packed_once_and_as_accurate(layout, dtype, onednn, packings):
    x, b = torch.randn(7, 5, 32).to(dtype), torch.randn(24).to(dtype)
    shape = {"whole": (24, 32), "slice": (72, 32), "transposed": (32, 24)}[layout]
    w = torch.nn.Parameter(torch.randn(shape).to(dtype), requires_grad=False)
    w = {"whole": w, "slice": w[24:48], "transposed": w.t()}[layout]
    exact, reference = F.linear(x.double(), w.double(), b.double()), F.linear(x, w, b)
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for rows in (x, x, x[:2], x):
            got = linear(rows, w, b)
            assert_as_accurate("out", got, [reference[: len(rows)]], exact[: len(rows)].numpy(), eps_of(dtype))
    assert len(packings) == 1


def test_packed_weight_that_is_written_to_is_packed_anew(onednn, packings):
    x, w = torch.randn(6, 8), torch.nn.Parameter(torch.randn(5, 8))
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(3):
            w.mul_(-1.5)
            torch.testing.assert_close(linear(x, w), F.linear(x, w))
    assert len(packings) == 3


@pytest.mark.parametrize("fused", [False, True])
def test_packed_weight_that_an_optimizer_writes_to_is_packed_anew(onednn, packings, fused):
    """A fused one leaves no new version."""
    x, w = torch.randn(6, 8), torch.nn.Parameter(torch.randn(5, 8))
    optimizer = torch.optim.AdamW([w], lr=0.1, fused=fused)
    w.grad = torch.ones_like(w)
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(3):
            torch.testing.assert_close(linear(x, w), F.linear(x, w))
            optimizer.step()
    assert len(packings) == 3


def test_packed_weight_is_let_go_with_its_parameter_or_when_that_moves(onednn):
    """A server may change its models for as long as it likes."""
    x, module = torch.randn(6, 8), crossmodal.nn.Linear(8, 5)
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(20):
            copy.deepcopy(module)(x)
            module.weight.data = module.weight.data.clone()
            module(x)
        assert len(packed_weights._packed) <= 2


def test_another_weight_in_the_place_of_one_that_is_gone_is_not_taken_for_it(onednn):
    x = torch.randn(6, 8)
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(20):
            w = torch.nn.Parameter(torch.randn(5, 8))  # the allocator likes to give the same memory again
            torch.testing.assert_close(linear(x, w), F.linear(x, w))
            del w


def test_parameter_that_got_other_memory_is_not_taken_for_the_one_that_lies_where_it_lay(onednn):
    x, first = torch.randn(6, 8), crossmodal.nn.Linear(8, 5, bias=False)
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(20):
            first(x)
            first.weight.data = first.weight.data.clone()
            w = torch.nn.Parameter(torch.randn(5, 8))
            torch.testing.assert_close(linear(x, w), F.linear(x, w))
            first.weight.data = torch.randn(5, 8)
            torch.testing.assert_close(first(x), F.linear(x, first.weight))


def test_weights_that_are_computed_are_not_packed(onednn, packings):
    """There is another one in every call, and each would be kept."""
    module = torch.nn.utils.parametrizations.weight_norm(crossmodal.nn.Linear(8, 5))
    with torch.no_grad(), crossmodal.nn.packed_weights():
        for _ in range(3):
            module(torch.randn(6, 8))
        assert not packings and not packed_weights._packed


def test_weights_are_packed_in_inference_alone_and_let_go_at_the_end(onednn, packings):
    module = crossmodal.nn.Linear(8, 5)
    x = torch.randn(6, 8)
    linear(x, module.weight)
    with crossmodal.nn.packed_weights():
        module(x).sum().backward()  # a training step
        assert not packings and "packed" not in str(crossmodal.explain(module, x))
        with torch.no_grad(), crossmodal.nn.packed_weights():
            module(x)
            assert "packed once" in str(crossmodal.explain(module, x))
        with torch.no_grad():
            module(x)  # someone is still within
        assert len(packings) == 1
        copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    assert not packed_weights._packed
    with torch.no_grad():
        module(x)
        assert len(packings) == 1 and all(torch.equal(c(x), module(x)) for c in copies)


def test_weights_without_a_version_are_not_packed(onednn, packings):
    with torch.inference_mode(), crossmodal.nn.packed_weights():
        x, w = torch.randn(6, 8), torch.randn(5, 8)
        for _ in range(2):
            torch.testing.assert_close(linear(x, w), F.linear(x, w))
            w.mul_(2)
    assert not packings


def test_packed_attention_gives_what_it_gave(onednn, packings):
    module = crossmodal.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    text, image = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    padding = torch.arange(7) >= torch.tensor([[7], [3], [5]])
    with torch.no_grad():
        calls = [(text, text, text), (text, image, image), (text, image, image, padding, False)]
        wanted = [module(*call)[0] for call in calls]
        with crossmodal.nn.packed_weights():
            for _ in range(2):
                for call, there in zip(calls, wanted, strict=True):
                    torch.testing.assert_close(module(*call)[0], there)
    assert len(packings) == 4  # all three, queries, keys with values, outputs


def test_onednn_that_is_switched_off_is_not_used(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", "onednn")
    assert _products.onednn_leads(torch.float32)
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of Intel's GPUs
    try:
        assert not _products.onednn_leads(torch.float32)
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("layout", ["transposed input", "slice of a weight", "expanded input", "transposed weight"])
def test_any_strides(layout, onednn):
    x, w = torch.randn(6, 4, 16), torch.randn(24, 16)
    if layout == "transposed input":
        x = x.transpose(0, 1)
    elif layout == "expanded input":
        x = x[:1].expand(6, -1, -1)
    else:
        w = w[8:16] if layout == "slice of a weight" else torch.randn(16, 24).t()
    for got, wanted in zip(
        gradients(linear, torch.float32, x, w), gradients(F.linear, torch.float32, x, w), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_gradient_of_a_gradient(onednn):
    x, w, b = (torch.randn(shape, requires_grad=True) for shape in ((3, 4), (5, 4), (5,)))

    def penalty(function):
        inner = torch.autograd.grad(function(x, w, b).square().sum(), (x, w, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in inner), (x, w, b))

    for got, wanted in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(got, wanted)


def test_frozen_weight_gets_no_gradient(onednn):
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    assert torch.autograd.grad(linear(x, w).sum(), x)[0].shape == x.shape


REFUSED = {
    "nested": lambda: refusal(torch.nested.nested_tensor([torch.randn(2, 4)]), torch.randn(3, 4)),
    "dtype": lambda: refusal(torch.randn(2, 4).double(), torch.randn(3, 4).double()),
    "dtypes": lambda: refusal(torch.randn(2, 4), torch.randn(3, 4).bfloat16()),
    "class": lambda: refusal(torch.nn.Buffer(torch.randn(2, 4)).as_subclass(Tagged), torch.randn(3, 4)),
    "small": lambda: refusal(torch.randn(2, 4), torch.randn(3, 4)),
    "shapes": lambda: refusal(torch.randn(2, 4), torch.randn(3, 5)),
    "device": lambda: refusal(torch.randn(2, 4, device="meta"), torch.randn(3, 4, device="meta")),
}
REASONS = {
    "nested": "not dense",
    "dtype": "only float32 and bfloat16",
    "dtypes": "dtypes do not fit",
    "class": "another class",
    "small": "too small",
    "shapes": "shapes do not fit",
    "device": "CPU",
}


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_to_torch_says_why(name):
    assert REASONS[name] in REFUSED[name]()


def test_transforms_and_autocast_go_to_torch(onednn):
    x, w = torch.randn(6, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(linear, (0, None))(x, w), F.linear(x, w))
    got = torch.func.jvp(lambda x: linear(x, w), (x,), (x,))[1]
    torch.testing.assert_close(got, F.linear(x, w))


def test_wrong_shapes_raise_what_torch_raises(onednn):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        linear(torch.randn(2, 4), torch.randn(3, 5))


@pytest.mark.parametrize(("choice", "taken"), [("onednn", True), ("torch", False)])
def test_environment_decides(choice, taken, monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", choice)
    monkeypatch.setattr(_products, "_lead", lambda *_: pytest.fail("measured all the same"))
    assert _products.onednn_leads(torch.float32) is taken


def test_unknown_choice_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", "mkl")
    with pytest.raises(ValueError, match='CROSSMODAL_LINEAR must be "onednn" or "torch", got \'mkl\''):
        _products.onednn_leads(torch.float32)


def test_measuring_happens_once_and_draws_nothing_from_torchs_generator():
    _products._lead.cache_clear()
    torch.manual_seed(0)
    wanted = torch.randn(3)
    torch.manual_seed(0)
    assert _products.lead() == _products.lead() > 0
    assert torch.equal(torch.randn(3), wanted)
    assert _products._lead.cache_info().misses == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_measuring_does_not_ask_for_the_default_dtype_or_device(dtype):
    _products._lead.cache_clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            assert _products.lead() > 0 and _products._lead("weight gradient", torch.get_num_threads()) > 0
    finally:
        torch.set_default_dtype(before)


def test_nothing_is_kept_that_no_gradient_is_made_of(onednn):
    """As torch: what is kept takes memory, and must not be changed before backward."""

    def kept(x, w):
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(tuple(t.shape)) or t, lambda t: t):
            return linear(x, w), seen

    x, w = torch.randn(6, 8), torch.randn(5, 8)
    assert kept(x.clone().requires_grad_(), w)[1] == [(5, 8)]
    weight = torch.nn.Parameter(w.clone())
    out, seen = kept(x, weight)
    assert seen == [(6, 8)]
    with torch.no_grad():
        weight.add_(1)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, -1))


def test_counters_of_operations_see_the_products(onednn):
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter:
        linear(torch.randn(6, 8), torch.randn(5, 8))
    assert counter.get_total_flops() == 2 * 6 * 8 * 5


def test_counters_around_backward_alone_see_its_products(onednn):
    out = linear(torch.randn(6, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True))
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 6 * 8 * 5)


def test_counters_do_not_see_what_the_libraries_are_compared_by():
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter:
        _products._lead.__wrapped__("weight gradient", torch.get_num_threads())
    assert counter.get_total_flops() == 0


def test_a_machine_without_onednn_uses_torch(monkeypatch):
    _products._lead.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not _products.onednn_leads(torch.float32)
    _products._lead.cache_clear()


def test_compiled_and_exported_modules_hold_torchs_own_product(onednn):
    module = crossmodal.nn.MultiheadAttention(16, 2).eval()
    x = torch.randn(5, 2, 16)
    program = torch.export.export(module, (x, x, x))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("mkldnn" in target for target in targets) and any("linear" in target for target in targets)
