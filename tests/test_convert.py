"""convert and restore: whole models keep their outputs, gradients and checkpoints."""

import copy

import pytest
import torch
from torch import nn

import crossmodal
from crossmodal.nn import _products
from tests.tolerance import assert_as_accurate, eps_of

WIDTH, HEADS, BATCH, SOURCE, TARGET = 16, 2, 3, 7, 5
LAYER = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 32, "dropout": 0.0}


class Captioner(nn.Module):
    """Attention of every kind, one of them shared by two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(**LAYER, batch_first=True)
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        self.again = self.cross

    def forward(self, source, target, **_):
        memory = self.encoder(source)
        out, weights = self.cross(target, memory, memory)
        return out + self.again(out, memory, memory, need_weights=False)[0] + weights.sum()


def padding():
    return torch.arange(SOURCE) >= torch.tensor([[SOURCE], [3], [5]])


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER, batch_first=True, **options), 2)

    def forward(self, source, target):
        # what padding gives is not defined: torch's fused path gives zero, its other one does not
        return self.stack(source, src_key_padding_mask=padding()).masked_fill(padding()[..., None], 0)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(**LAYER, batch_first=True), 2)

    def forward(self, source, target):
        causal = nn.Transformer.generate_square_subsequent_mask(TARGET, dtype=source.dtype)
        return self.stack(target, source, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=padding())


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, 32, dropout=0.0, batch_first=True)

    def forward(self, source, target):
        return self.transformer(source, target)


MODELS = {
    "encoder": Encoder,
    "encoder that normalises first": lambda: Encoder(norm_first=True),
    "decoder": Decoder,
    "transformer": Whole,
    "captioner": Captioner,
}


def results(model, dtype, training):
    model = copy.deepcopy(model).to(dtype).train(training)
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randn(BATCH, n, WIDTH, generator=generator).to(dtype) for n in (SOURCE, TARGET))
    if not training:
        with torch.no_grad():
            return {"out": model(source, target)}
    leaves = {"source": source.requires_grad_(), "target": target.requires_grad_(), **dict(model.named_parameters())}
    out = model(source, target)
    loss = (out * torch.randn(out.shape, generator=generator).to(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None}
    return {"out": out.detach(), **found}


@pytest.mark.parametrize("training", [False, True], ids=["answering", "training"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_converted_model_gives_outputs_and_gradients_as_accurate_as_before(name, training):
    model = MODELS[name]()
    exact, reference = (results(model, dtype, training) for dtype in (torch.float64, torch.float32))
    assert crossmodal.convert(model).changed
    got = results(model, torch.float32, training)
    assert got.keys() == exact.keys()
    for leaf in got:
        assert_as_accurate(leaf, got[leaf], [reference[leaf]], exact[leaf].numpy(), eps_of(torch.float32))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_restored_model_is_what_it_was(name):
    model = MODELS[name]()
    classes = [type(m) for m in model.modules()]
    wanted = results(model, torch.float32, False)["out"]
    changed = crossmodal.convert(model).changed
    assert crossmodal.restore(model).changed == changed
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(results(model, torch.float32, False)["out"], wanted)


def test_every_attention_is_ours_and_runs_in_strict_mode(monkeypatch):
    """A layer of torch does not pass it by on a path of its own."""
    model = Encoder().eval()
    report = crossmodal.convert(model)
    assert report.changed == ["stack.layers.0.self_attn", "stack.layers.1.self_attn"]
    calls = []
    forward = crossmodal.nn.MultiheadAttention.forward
    monkeypatch.setattr(
        crossmodal.nn.MultiheadAttention, "forward", lambda *a, **o: calls.append(1) or forward(*a, **o)
    )
    with crossmodal.strict(), torch.no_grad():
        model(torch.randn(BATCH, SOURCE, WIDTH), None)
    assert len(calls) == 2


def test_a_module_stays_the_same_object_with_its_parameters_and_hooks():
    model = Captioner()
    attention, parameters = model.cross, list(model.parameters())
    called = []
    attention.register_forward_hook(lambda *_: called.append(1))
    crossmodal.convert(model)
    assert model.cross is model.again is attention
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model(torch.randn(BATCH, SOURCE, WIDTH), torch.randn(BATCH, TARGET, WIDTH))
    assert len(called) == 2


def test_checkpoints_fit_before_and_after():
    model = Captioner()
    before = list(model.state_dict())
    crossmodal.convert(model)
    assert list(model.state_dict()) == before
    Captioner().load_state_dict(model.state_dict())


def test_a_model_that_is_attention_itself():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    assert crossmodal.convert(model).changed == [""]
    assert type(model) is crossmodal.nn.MultiheadAttention
    assert "(the model itself)" in str(crossmodal.restore(model))
    assert type(model) is nn.MultiheadAttention and model._qkv_same_embed_dim


class Own(nn.MultiheadAttention):
    pass


class WindowAttention(nn.Module):
    pass


def test_report_names_what_was_left_and_why():
    model = nn.ModuleDict({"own": Own(WIDTH, HEADS), "window": WindowAttention(), "linear": nn.Linear(2, 2)})
    report = crossmodal.convert(model)
    assert report.changed == [] and [name for name, _ in report.left] == ["own", "window"]
    text = str(report)
    assert text.startswith("changed 0, left 2")
    assert "own: its class tests.test_convert.Own is a subclass of torch.nn.MultiheadAttention" in text
    assert "window: its class tests.test_convert.WindowAttention is no torch.nn.MultiheadAttention" in text


@pytest.mark.parametrize("training", [False, True], ids=["answering", "training"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_linear_layers_are_converted_when_asked_for(name, training, monkeypatch):
    monkeypatch.setenv("CROSSMODAL_LINEAR", "onednn")
    monkeypatch.setattr(_products, "WORTHWHILE", 0)
    model = MODELS[name]()
    exact, reference = (results(model, dtype, training) for dtype in (torch.float64, torch.float32))
    classes, plain = [type(m) for m in model.modules()], [m for m in model.modules() if type(m) is nn.Linear]
    report = crossmodal.convert(model, linear=True)
    assert all(type(m) is crossmodal.nn.Linear for m in plain)
    assert len(report.changed) == len(plain) + sum(type(m) is crossmodal.nn.MultiheadAttention for m in model.modules())
    got = results(model, torch.float32, training)
    for leaf in got:
        assert_as_accurate(leaf, got[leaf], [reference[leaf]], exact[leaf].numpy(), eps_of(torch.float32))
    assert crossmodal.restore(model).changed == report.changed
    assert [type(m) for m in model.modules()] == classes


def test_a_linear_layer_of_another_class_is_left_and_named():
    class Adapter(nn.Linear):
        pass

    model = nn.Sequential(Adapter(2, 2), nn.MultiheadAttention(WIDTH, HEADS), nn.LazyLinear(3))
    assert crossmodal.convert(model).left == []
    report = crossmodal.convert(model, linear=True)
    assert [name for name, _ in report.left] == ["0", "2"]
    assert "Adapter is a subclass of torch.nn.Linear, which may do otherwise" in report.left[0][1]


def test_linear_layers_stay_unless_asked_for():
    model = nn.Sequential(nn.Linear(2, 2))
    assert crossmodal.convert(model) == crossmodal.Conversion()


def test_converting_twice_changes_nothing_more():
    model = Captioner()
    crossmodal.convert(model)
    assert crossmodal.convert(model) == crossmodal.Conversion()


def test_subclass_of_ours_is_not_restored():
    class Child(crossmodal.nn.MultiheadAttention):
        pass

    model = nn.Sequential(Child(WIDTH, HEADS))
    report = crossmodal.restore(model)
    assert report.changed == [] and report.left[0][0] == "0"


@pytest.mark.parametrize("function", [crossmodal.convert, crossmodal.restore])
def test_something_else_than_a_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        function([])
