"""Linear layers through oneDNN: torch's numbers, torch's gradients, and the weight as it is now."""

import pytest
import torch
import torch.nn.functional as F

import crossmodal
from crossmodal.nn import _products
from crossmodal.nn._linear import linear, refusal
from tests.tolerance import assert_as_accurate, eps_of


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


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_product_and_gradients_are_as_accurate_as_torch(shape, features, bias, onednn):
    tensors = [torch.randn(shape), torch.randn(features, shape[-1])] + [torch.randn(features)] * bias
    assert (refusal(*tensors) is None) == (tensors[0].numel() > 0)
    exact, reference = (gradients(F.linear, dtype, *tensors) for dtype in (torch.float64, torch.float32))
    for i, (got, r, e) in enumerate(zip(gradients(linear, torch.float32, *tensors), reference, exact, strict=True)):
        assert_as_accurate(str(i), got, [r], e.numpy(), eps_of(torch.float32))


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
    "class": lambda: refusal(torch.nn.Buffer(torch.randn(2, 4)).as_subclass(Tagged), torch.randn(3, 4)),
    "small": lambda: refusal(torch.randn(2, 4), torch.randn(3, 4)),
    "shapes": lambda: refusal(torch.randn(2, 4), torch.randn(3, 5)),
    "device": lambda: refusal(torch.randn(2, 4, device="meta"), torch.randn(3, 4, device="meta")),
}
REASONS = {
    "nested": "not dense",
    "dtype": "float32", "class": "another class", "small": "too small", "shapes": "do not fit", "device": "CPU",
}  # fmt: skip


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
    assert _products.onednn_leads() is taken


def test_unknown_choice_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", "mkl")
    with pytest.raises(ValueError, match='CROSSMODAL_LINEAR must be "onednn" or "torch", got \'mkl\''):
        _products.onednn_leads()


def test_measuring_happens_once_and_draws_nothing_from_torchs_generator():
    _products._lead.cache_clear()
    torch.manual_seed(0)
    wanted = torch.randn(3)
    torch.manual_seed(0)
    assert _products.lead() == _products.lead() > 0
    assert torch.equal(torch.randn(3), wanted)
    assert _products._lead.cache_info().misses == 1


def test_a_machine_without_onednn_uses_torch(monkeypatch):
    _products._lead.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not _products.onednn_leads()
    _products._lead.cache_clear()


def test_compiled_and_exported_modules_hold_torchs_own_product(onednn):
    module = crossmodal.nn.MultiheadAttention(16, 2).eval()
    x = torch.randn(5, 2, 16)
    program = torch.export.export(module, (x, x, x))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("mkldnn" in target for target in targets) and any("linear" in target for target in targets)
