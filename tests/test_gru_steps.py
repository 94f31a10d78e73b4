"""GRUs in steps of our own: what torch's compute, and only where that is wanted."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from crossmodal.blocks.operators import use_implementation
from crossmodal.encoders import bidirectional
from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.gru_steps import runs_in_steps

LENGTHS = torch.tensor([7, 1, 4, 0])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tokens(dtype=torch.float64, size=7, channels=6):
    return torch.randn(len(LENGTHS), size, channels, dtype=dtype).requires_grad_()


def by_torch(monkeypatch, layer, values, lengths=LENGTHS):
    with monkeypatch.context() as patch:
        patch.setattr(bidirectional, "runs_in_steps", lambda *_: False)
        return layer(values, lengths)


def test_real_tokens_are_those_of_packed_sequences():
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()
    assert runs_in_steps(values, layer.ahead, layer.back)
    both = torch.nn.GRU(6, 4, batch_first=True, bidirectional=True).double()
    both.load_state_dict(
        layer.ahead.state_dict() | {f"{name}_reverse": weight for name, weight in layer.back.state_dict().items()}
    )
    read = layer(values, LENGTHS)
    packed = pack_padded_sequence(values[:3], LENGTHS[:3], batch_first=True, enforce_sorted=False)
    wanted, _ = pad_packed_sequence(both(packed)[0], batch_first=True)
    for row, length in enumerate(LENGTHS[:3]):
        torch.testing.assert_close(read[row, :length], wanted[row, :length])


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_that_of_torch(monkeypatch, dtype, size):
    """Padding too, over tokens that lie transposed in memory, and once more from the same graph."""
    layer, lengths = Bidirectional("gru", 6, 8).to(dtype), LENGTHS.clamp(max=size)
    values = tokens(dtype, size).detach().mT.contiguous().mT.requires_grad_()
    read, wanted = layer(values, lengths), by_torch(monkeypatch, layer, values, lengths)
    torch.testing.assert_close(read, wanted)
    leaves, upstream = [values, *layer.parameters()], torch.randn_like(read)
    gradients = torch.autograd.grad(wanted, leaves, upstream)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(read, leaves, upstream, retain_graph=True), gradients)


def test_gradients_and_their_gradients_are_those_of_differences():
    layer = Bidirectional("gru", 3, 4).double()
    names, weights = zip(*layer.named_parameters(), strict=True)

    def read(values, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (values, LENGTHS))

    inputs = tokens(channels=3), *weights
    assert torch.autograd.gradcheck(read, inputs)
    assert torch.autograd.gradgradcheck(read, inputs)


@pytest.mark.parametrize("frozen", ["values", "weights"])
def test_what_is_frozen_gets_no_gradient(monkeypatch, frozen):
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()
    for leaf in [values] if frozen == "values" else layer.parameters():
        leaf.requires_grad_(False)
    leaves = [leaf for leaf in (values, *layer.parameters()) if leaf.requires_grad]
    assert runs_in_steps(values, layer.ahead, layer.back)
    gradients = torch.autograd.grad(layer(values, LENGTHS).square().sum(), leaves)
    wanted = torch.autograd.grad(by_torch(monkeypatch, layer, values).square().sum(), leaves)
    torch.testing.assert_close(gradients, wanted)


def test_what_is_read_may_be_modified_in_place(monkeypatch):
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()
    read, wanted = layer(values, LENGTHS), by_torch(monkeypatch, layer, values)
    for result in (read, wanted):
        result[1] = 0
        result.mul_(2)
    gradients, others = (torch.autograd.grad(result.square().sum(), values)[0] for result in (read, wanted))
    torch.testing.assert_close(gradients, others)


@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_small_states_are_as_accurate_as_those_of_torch(monkeypatch, factor):
    layer = Bidirectional("gru", 6, 8)
    for name, weight in layer.named_parameters():
        if "bias" in name:
            torch.nn.init.zeros_(weight)
    values = (factor * tokens(torch.float32)).detach().requires_grad_()
    exact = by_torch(monkeypatch, copy.deepcopy(layer).double(), values.double())
    ours, theirs = (
        (read - exact).abs().max() / exact.abs().max()
        for read in (layer(values, LENGTHS), by_torch(monkeypatch, layer, values))
    )
    assert ours < 2 * theirs + 1e-7


def test_the_reference_is_read_by_torch(monkeypatch):
    layer, values = Bidirectional("gru", 6, 8), tokens(torch.float32)
    assert runs_in_steps(values, layer.ahead, layer.back)
    use_implementation(layer, "reference")
    monkeypatch.setattr(bidirectional, "read_both_ways", None)  # would be a TypeError
    assert layer(values, LENGTHS).requires_grad


def test_features_made_in_inference_mode_are_read_by_torch():
    layer = Bidirectional("gru", 6, 8)
    with torch.inference_mode():
        values = torch.randn(4, 7, 6)
    assert not runs_in_steps(values, layer.ahead, layer.back)


def test_nothing_to_read_gives_nothing():
    layer = Bidirectional("gru", 6, 8)
    assert layer(torch.randn(0, 5, 6), torch.zeros(0, dtype=torch.int64)).shape == (0, 5, 8)
    assert layer(torch.randn(2, 0, 6), torch.zeros(2, dtype=torch.int64)).shape == (2, 0, 8)


def test_without_gradients_and_under_autocast_torch_reads():
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()
    layers = layer.ahead, layer.back
    wanted = layer(values, LENGTHS)
    with torch.no_grad():
        assert not runs_in_steps(values, *layers)
        torch.testing.assert_close(layer(values, LENGTHS), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_in_steps(values, *layers)
    assert not runs_in_steps(values.half(), *layers)
    assert not runs_in_steps(values, layer.ahead, torch.nn.Identity())


def test_transforms_go_through_torch():
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()

    def loss(values):
        assert not runs_in_steps(values, layer.ahead, layer.back)
        return layer(values, LENGTHS).square().sum()

    wanted = torch.autograd.grad(layer(values, LENGTHS).square().sum(), values)[0]
    torch.testing.assert_close(torch.func.grad(loss)(values), wanted)


@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"]
)
def test_layers_with_hooks_are_called(register):
    layer, values = Bidirectional("gru", 6, 8).double(), tokens()
    called = []
    getattr(layer.back, register)(lambda *_: called.append(True))
    layer(values, LENGTHS).sum().backward()
    assert called


def test_layers_are_called_where_all_modules_have_a_hook():
    layer, called = Bidirectional("gru", 6, 8).double(), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        layer(tokens(), LENGTHS)
    finally:
        hook.remove()
    assert called == [layer.ahead, layer.back, layer]


@pytest.mark.slow
def test_compiled_and_exported_it_is_the_same():
    layer, values = Bidirectional("gru", 6, 8), tokens(torch.float32)
    wanted = layer(values, LENGTHS)
    compiled = torch.compile(layer, backend="aot_eager")(values, LENGTHS)
    torch.testing.assert_close(compiled, wanted)
    exported = torch.export.export(layer, (values.detach(), LENGTHS)).module()
    torch.testing.assert_close(exported(values.detach(), LENGTHS), wanted)
