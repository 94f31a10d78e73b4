"""Convolutions whose channels lie beside each other: what torch's compute."""

import unittest.mock

import pytest
import torch

from crossmodal.blocks.operators import use_implementation
from crossmodal.encoders import convolution
from crossmodal.encoders.convolution import ConvOverTime
from crossmodal.encoders.patches import PatchEmbedding


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "_WORTHWHILE", 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 4, 37])
def test_convolution_over_time_is_that_of_torch(stride, length):
    ours = ConvOverTime(12, 16, 5, stride=stride, padding=2)
    torchs = torch.nn.Conv1d(12, 16, 5, stride=stride, padding=2).double()
    torchs.load_state_dict(ours.state_dict())
    tokens = torch.randn(3, length, 12, requires_grad=True)
    exact = tokens.detach().double().requires_grad_()
    found, wanted = ours(tokens), torchs(exact.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(wanted)
    found.backward(upstream.float())
    wanted.backward(upstream)
    torch.testing.assert_close(tokens.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.weight.grad.double(), torchs.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.bias.grad.double(), torchs.bias.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_convolution_over_time_and_their_gradients_are_those_of_differences(stride):
    layer = ConvOverTime(3, 4, 5, stride=stride, padding=2).double()
    tokens = torch.randn(2, 3, 6, dtype=torch.float64).mT.requires_grad_()  # transposed in memory

    def convolve(tokens, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, tokens)

    leaves = [tokens, *(p.detach().clone().requires_grad_() for p in layer.parameters())]
    assert torch.autograd.gradcheck(convolve, leaves)
    assert torch.autograd.gradgradcheck(convolve, leaves)


def test_a_convolution_over_time_gathers_only_so_much_at_a_time(monkeypatch):
    layer, tokens = ConvOverTime(3, 4, 5, stride=2, padding=2).double(), torch.randn(7, 9, 3, dtype=torch.float64)
    gradients = []
    for most in (1, 60, 200, 10**9):
        monkeypatch.setattr(convolution, "_GATHERED", most)
        gradients.append(torch.autograd.grad(layer(tokens).square().sum(), layer.weight)[0])
    for gradient in gradients[:-1]:
        torch.testing.assert_close(gradient, gradients[-1])


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_of_a_convolution_over_time_gets_no_gradient(frozen):
    layer = ConvOverTime(3, 4, 5, padding=2)
    getattr(layer, frozen).requires_grad_(False)
    tokens = torch.randn(2, 6, 3, requires_grad=True)
    layer(tokens).sum().backward()
    other = layer.bias if frozen == "weight" else layer.weight
    assert getattr(layer, frozen).grad is None and other.grad is not None and tokens.grad is not None


def test_what_a_convolution_over_time_gives_may_be_modified_in_place():
    layer, tokens = ConvOverTime(3, 4, 5, padding=2).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    gradients = []
    for change in (lambda found: found.relu_(), lambda found: found.relu()):
        layer.zero_grad()
        change(layer(tokens)).square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients)


def test_small_convolutions_over_time_leave_their_gradients_to_torch(monkeypatch):
    monkeypatch.undo()
    layer = ConvOverTime(96, 96, 5, stride=2, padding=2)
    assert not layer._gathers(torch.randn(1, 50, 96)) and layer._gathers(torch.randn(128, 50, 96))


def test_a_long_sound_is_gathered_in_pieces(monkeypatch):
    """What backward needs at a time does not grow with the length, but for the padded copy."""
    layer, tokens = ConvOverTime(4, 4, 5, padding=2), torch.randn(1, 1000, 4)
    monkeypatch.setattr(convolution, "_GATHERED", 400)
    sizes, product = [], torch.Tensor.addmm_

    def measured(gradient, upstream, windows):
        sizes.append(windows.numel())
        return product(gradient, upstream, windows)

    monkeypatch.setattr(torch.Tensor, "addmm_", measured)
    layer(tokens).sum().backward()
    assert len(sizes) == 50 and max(sizes) == 400


def test_patches_must_fill_the_image():
    for implementation in ("fused", "reference"):
        layer = PatchEmbedding(1, 4, 4)
        layer.implementation = implementation
        with pytest.raises(ValueError, match=r"pixels must be multiples of 4, got \(10, 8\)"):
            layer(torch.randn(2, 1, 10, 8))


@pytest.mark.parametrize("layer", [ConvOverTime(3, 4, 5, stride=2, padding=2), PatchEmbedding(3, 4, 2)])
def test_the_reference_is_torchs_own_convolution(layer):
    plain = torch.nn.Conv1d if isinstance(layer, torch.nn.Conv1d) else torch.nn.Conv2d
    given = torch.randn(2, 6, 3) if plain is torch.nn.Conv1d else torch.randn(2, 3, 6, 4)
    wanted = layer(given)
    with unittest.mock.patch.object(plain, "forward", autospec=True, side_effect=plain.forward) as called:
        use_implementation(layer, "reference")
        torch.testing.assert_close(layer(given), wanted)
        assert called.call_count == 1
        use_implementation(layer, "fused")
        layer(given)
        assert called.call_count == 1


def test_a_convolution_over_time_goes_to_torch_under_transforms_and_compilers():
    layer, tokens = ConvOverTime(3, 4, 5, padding=2).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    wanted = layer(tokens)
    weights = dict(layer.named_parameters())

    def total(weights, tokens):
        return torch.func.functional_call(layer, weights, tokens).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0))(weights, tokens.unsqueeze(1))
    wanted.square().sum().backward()
    torch.testing.assert_close(per_sample["weight"].sum(0), layer.weight.grad)
    found = layer(tokens)
    directions = torch.randn(3, *found.shape, dtype=found.dtype)
    batched = torch.autograd.grad(found, layer.weight, directions, is_grads_batched=True, retain_graph=True)[0]
    for one, direction in zip(batched, directions, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(found, layer.weight, direction, retain_graph=True)[0])
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(tokens), wanted)
    torch.testing.assert_close(torch.export.export(layer, (tokens,)).module()(tokens), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(tokens.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_those_of_a_convolution(channels):
    ours, torchs = PatchEmbedding(channels, 8, 4).double(), torch.nn.Conv2d(channels, 8, 4, 4).double()
    torchs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, channels, 8, 12, dtype=torch.float64, requires_grad=True)
    found, wanted = ours(pixels), torchs(pixels).flatten(2).mT
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [pixels, *ours.parameters()], upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, [pixels, *torchs.parameters()], upstream))
