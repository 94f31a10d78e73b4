"""attn_implementation="crossmodal": models of transformers give what they give by their own eager attention."""

import contextlib
import copy
import pickle
import sys
import warnings

import pytest
import torch

import crossmodal
from crossmodal._extras import MissingExtraError
from tests.tolerance import assert_as_accurate, eps_of

hf = pytest.importorskip("transformers")

from tests.integrations.tiny_models import (  # noqa: E402
    BATCH,
    IMAGE,
    LENGTH,
    MODELS,
    UNROUTED,
    blip,
    ids,
    left_padding,
    right_padding,
    sharpened,
    without_dropout,
)

integration = crossmodal.integrations.transformers


@pytest.fixture(autouse=True)
def _registered():
    hf.logging.set_verbosity_error()
    integration.register()


@pytest.fixture
def softmax_in_double(monkeypatch):
    """Eager attention of some models takes the softmax in float32, where the lowest float64, its mask, is -inf."""
    softmax = torch.nn.functional.softmax

    def exact(x, dim, dtype=None, **kwargs):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


@pytest.fixture
def calls(monkeypatch):
    """Keyword arguments and tensors of each call of our operators."""
    seen = []
    for name in ("attention", "fuse"):
        operator = getattr(crossmodal, name)
        monkeypatch.setattr(
            integration, name, lambda *a, operator=operator, **o: seen.append((a, o)) or operator(*a, **o)
        )
    return seen


def pair(name, dtype=torch.float32):
    """The model by eager attention and by ours, of the same weights."""
    torch.manual_seed(1)
    eager = sharpened(without_dropout(MODELS[name].build("eager")))
    ours = without_dropout(MODELS[name].build("crossmodal"))
    ours.load_state_dict(eager.state_dict())
    return eager.to(dtype), ours.to(dtype)


def cast(inputs, dtype):
    return {n: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for n, t in inputs.items()}


def results(model, inputs, output):
    """The output, and the gradient of every parameter it depends on."""
    out = output(model.eval()(**inputs))
    generator = torch.Generator().manual_seed(1)
    loss = (out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {"out": out.detach(), **{n: g for n, g in zip(names, gradients, strict=True) if g is not None}}


def assert_model_as_accurate(got, references, wanted):
    """The rule, for the output and for the gradient of all parameters, each measured by its own largest number.

    What is exactly zero, as the gradient of a key's bias, has no size of its own and counts by that of the others.
    Nor has a single number, as the gradient of a gate: a sum over all tokens, which cancels to any size by chance.
    """
    assert all(r.keys() == wanted.keys() for r in (got, *references))
    largest = max(float(t.abs().max()) for n, t in wanted.items() if n != "out")
    own = {n: float(t.abs().max()) for n, t in wanted.items()}
    scale = {n: size if size > 1e-12 * largest and wanted[n].numel() > 1 else largest for n, size in own.items()}

    def gradient(found):
        return torch.cat([(t / scale[n]).flatten() for n, t in found.items() if n != "out"])

    for name, part in (("out", lambda r: r["out"]), ("gradient", gradient)):
        assert_as_accurate(name, part(got), [part(r) for r in references], part(wanted).numpy(), eps_of(torch.float32))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_as_accurate_as_by_eager_attention(name, calls, softmax_in_double):
    eager, ours = pair(name)
    inputs, output = MODELS[name].inputs(), MODELS[name].output
    wanted = results(copy.deepcopy(eager).double(), cast(inputs, torch.float64), output)
    sdpa = without_dropout(MODELS[name].build("sdpa" if eager._supports_sdpa else "eager"))
    sdpa.load_state_dict(eager.state_dict())
    references = [results(model, inputs, output) for model in (eager, sdpa)]
    assert not calls
    got = results(ours, inputs, output)
    assert calls
    assert_model_as_accurate(got, references, wanted)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.generate])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_generates_token_for_token(name, options, calls, softmax_in_double):
    """In double precision, where no two scores are a rounding error apart."""
    eager, ours = pair(name, torch.float64)
    inputs = cast(MODELS[name].generate(), torch.float64)
    wanted, got = (
        m.eval().generate(**inputs, **options, do_sample=False, repetition_penalty=2.0, max_new_tokens=8)
        for m in (eager, ours)
    )
    assert torch.equal(got, wanted) and calls
    assert len(set(wanted[:, -6:].flatten().tolist())) > 1, "one token all the time shows little"


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_generates_with_either_cache_and_left_padding(cache, softmax_in_double):
    eager, ours = pair("LLaVA", torch.float64)
    inputs = {"input_ids": ids(high=37), "attention_mask": left_padding()}
    options = {"cache_implementation": cache} if cache == "static" else {}
    wanted, got = (
        m.eval().generate(**inputs, **options, do_sample=False, repetition_penalty=2.0, max_new_tokens=6)
        for m in (eager, ours)
    )
    assert torch.equal(got, wanted)


def attentions(outputs):
    """Every tensor in a field of that name, however deep."""
    found = []
    for field, value in outputs.items():
        if isinstance(value, hf.utils.ModelOutput):
            found += attentions(value)
        elif "attentions" in field:
            found += [t for t in torch.utils._pytree.tree_leaves(value) if t is not None]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_output_attentions_are_the_weights(name, softmax_in_double):
    eager, ours = pair(name, torch.float64)
    inputs = cast(MODELS[name].inputs(), torch.float64)
    asked = integration.weights() if name in ("BridgeTower", "VisionEncoderDecoder") else contextlib.nullcontext()
    wanted = attentions(eager.eval()(**inputs, output_attentions=True))
    with asked:
        got = attentions(ours.eval()(**inputs, output_attentions=True))
    assert len(got) == len(wanted) > 0 and not attentions(ours(**inputs))
    for g, w in zip(got, wanted, strict=True):
        seen = (g.sum(-1, keepdim=True) > 0.5).to(w.dtype)  # padding that sees nothing gets 0 here, the mean there
        if g.shape[2] == LENGTH and "attention_mask" in inputs:
            seen = seen * inputs["attention_mask"][:, None, :, None]
        assert seen.mean() > 0.5
        torch.testing.assert_close(g * seen, w * seen, rtol=1e-4, atol=1e-5)


def test_padding_counts():
    """Were the mask interface not registered, it would be attended to without a word."""
    _, ours = pair("BART")
    inputs = MODELS["BART"].inputs()
    ours.eval()
    wanted = ours(**inputs).logits
    changed = {**inputs, "input_ids": torch.where(right_padding().bool(), inputs["input_ids"], 5)}
    assert torch.equal(ours(**changed).logits, wanted)
    assert not torch.allclose(ours(**{**changed, "attention_mask": torch.ones_like(right_padding())}).logits, wanted)


Q, K = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8)


def test_cross_attention_is_never_causal_whatever_the_module_says():
    module = torch.nn.Module()
    module.is_causal = True
    out, weights = integration.attention_forward(module, Q, K, K, None, is_causal=True)
    torch.testing.assert_close(out, crossmodal.attention(Q, K, K).transpose(1, 2))
    assert weights is None


def test_a_causal_mask_reaches_the_kernel_as_causal(calls):
    _, ours = pair("LLaVA")
    tokens = ids(high=37)
    ours.eval()(input_ids=tokens)
    (*_, term, dropout, is_causal), _ = calls[-1]
    assert term is None and is_causal and dropout == 0.0
    calls.clear()
    ours(input_ids=tokens, attention_mask=left_padding())
    assert calls[-1][0][3] is not None


def test_grouped_keys_are_not_repeated(calls):
    _, ours = pair("LLaVA")
    ours.eval()(input_ids=ids(high=37))
    (query, key, *_), _ = calls[-1]
    assert query.shape[1] == 2 and key.shape[1] == 1


def test_a_mask_that_is_the_same_for_every_query_is_read_as_key_padding(calls):
    mask = torch.rand(2, 1, 1, 7) < 0.8
    mask[..., 0] = True
    integration.attention_forward(torch.nn.Module(), Q, K, K, mask.expand(-1, 1, 5, -1))
    assert calls[0][0][3].shape == (2, 1, 1, 7)


MASKS = {
    "float": torch.randn(2, 1, 5, 7),
    "more keys than there are": torch.rand(2, 1, 5, 9) < 0.9,
    "integer": torch.randint(-3, 3, (2, 1, 1, 7)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("bias", [False, True], ids=["", "position_bias"])
def test_masks_of_every_kind(name, bias):
    mask, position = MASKS[name], torch.randn(1, 4, 5, 7) if bias else None
    out, _ = integration.attention_forward(torch.nn.Module(), Q, K, K, mask, position_bias=position, scaling=0.3)
    term = mask[..., :7]
    term = torch.zeros(term.shape).masked_fill(~term, -torch.inf) if term.dtype == torch.bool else term.float()
    term = term + position if bias else term
    torch.testing.assert_close(out, crossmodal.attention(Q, K, K, term, scale=0.3).transpose(1, 2))


def test_softcap_and_sinks():
    sink = torch.randn(4)
    out, _ = integration.attention_forward(torch.nn.Module(), Q, K, K, None, softcap=2.0, s_aux=sink)
    torch.testing.assert_close(out, crossmodal.attention(Q, K, K, softcap=2.0, sink=sink).transpose(1, 2))


def test_dropout_drops_in_training_alone():
    config = hf.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=32, dropout=0.0,
        attention_dropout=0.5,
    )  # fmt: skip
    model = sharpened(hf.BartModel._from_config(config, attn_implementation="crossmodal"))
    tokens = ids()

    def call():
        torch.manual_seed(3)
        return model(input_ids=tokens).last_hidden_state

    assert torch.equal(call(), call())
    dropped = call()
    assert not torch.equal(model.eval()(input_ids=tokens).last_hidden_state, dropped)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_in_one_graph_it_gives_the_same(name):
    torch._dynamo.reset()
    _, ours = pair(name)
    inputs, output = MODELS[name].inputs(), MODELS[name].output
    with torch.no_grad():
        wanted = output(ours.eval()(**inputs))
        got = output(torch.compile(ours, fullgraph=True, backend="eager")(**inputs))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_compiled_model_trains_as_in_eager():
    torch._dynamo.reset()
    _, ours = pair("CLIP")
    inputs, output = MODELS["CLIP"].inputs(), MODELS["CLIP"].output
    wanted, got = (results(m, inputs, output) for m in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")))
    for name, there in wanted.items():
        gradient = got["out" if name == "out" else f"_orig_mod.{name}"]
        torch.testing.assert_close(gradient, there, rtol=1e-3, atol=1e-4 * float(there.abs().max()))


@pytest.mark.parametrize("name", ["CLIP", "BART", "Whisper"])
def test_recomputed_activations_give_the_same_gradients(name):
    _, ours = pair(name)
    inputs, output = MODELS[name].inputs(), MODELS[name].output

    def gradients():
        ours.train().zero_grad()
        output(ours(**inputs)).square().sum().backward()
        return {n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None}

    wanted = gradients()
    getattr(ours, "activation_checkpointing_enable", ours.gradient_checkpointing_enable)()  # as of transformers 5.24
    got = gradients()
    assert got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)


def test_implementation_can_be_changed_in_a_model_that_is_there(calls):
    eager, _ = pair("BART")
    inputs = MODELS["BART"].inputs()
    wanted = eager.eval()(**inputs).logits
    eager.set_attn_implementation("crossmodal")
    torch.testing.assert_close(eager(**inputs).logits, wanted)
    assert len(calls) == 6  # two encoder layers, two of self- and two of cross-attention


@pytest.mark.parametrize("name", [name for name in UNROUTED if name != "ClapAudioModel"])  # CLAP's text asks
def test_a_model_that_never_asks_is_named_in_a_warning(name, monkeypatch):
    monkeypatch.setattr(integration, "_warned", set())
    config = UNROUTED[name][0]().config
    with pytest.warns(UserWarning, match=f"^{name} never asks for an attention implementation"):
        type(UNROUTED[name][0]())._from_config(config, attn_implementation="crossmodal")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_asks_is_not(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*never asks")
        MODELS[name].build("crossmodal")


@pytest.mark.parametrize("name", UNROUTED)
def test_adapted_layers_give_what_they_gave(name):
    build, make_inputs, layers = UNROUTED[name]
    model = sharpened(without_dropout(build()))
    inputs = make_inputs()

    def output(out):
        return out.pooled_output if name == "LxmertModel" else out.last_hidden_state[:, 0]

    wanted = results(copy.deepcopy(model).double(), cast(inputs, torch.float64), output)
    references = [results(model, inputs, output)]
    torch.manual_seed(0)  # ViLT shuffles its patches
    weights = model(**inputs, output_attentions=True)
    report = integration.adapt(model)
    assert len(report.changed) == layers and not report.left
    got = results(model, inputs, output)
    assert_model_as_accurate(got, references, wanted)
    torch.manual_seed(0)
    for field, given in model(**inputs, output_attentions=True).items():
        if "attentions" in field:
            for g, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (given, weights[field])), strict=True):
                torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
    classes = [type(m).__name__ for m in model.modules()]
    assert len(integration.restore(model).changed) == layers
    assert [type(m).__name__ for m in model.modules()] == classes
    assert not any(isinstance(m, integration.Adapted) for m in model.modules())


def test_layers_that_no_adapter_knows_are_reported():
    config = hf.MPNetConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    report = integration.adapt(hf.MPNetModel(config))
    assert report.changed == [] and {reason.split()[0] for _, reason in report.left} == {"MPNetSelfAttention"}


def test_a_layer_whose_version_takes_more_than_the_adapter_knows_is_left():
    """What is handed over would be lost without a word, as a cache was that had got another name."""
    model = UNROUTED["FlavaTextModel"][0]()
    layer = next(m for m in model.modules() if type(m).__name__ == "FlavaSelfAttention")

    class FlavaSelfAttention(type(layer)):
        def forward(self, hidden_states, attention_mask=None, output_attentions=False, cache=None):
            return super().forward(hidden_states, attention_mask, output_attentions)

    FlavaSelfAttention.__module__ = type(layer).__module__
    layer.__class__ = FlavaSelfAttention
    report = integration.adapt(model)
    (left,) = report.left
    assert len(report.changed) == 1
    assert left[1] == "this version of FlavaSelfAttention takes cache, which is not known"


@pytest.mark.parametrize("name", UNROUTED)
def test_adapted_models_survive_pickle_and_deepcopy(name):
    build, make_inputs, layers = UNROUTED[name]
    model, inputs = without_dropout(build()).eval(), make_inputs()
    integration.adapt(model)

    def call(model):
        torch.manual_seed(0)  # ViLT shuffles its patches
        out = model(**inputs)
        return out.pooled_output if name == "LxmertModel" else out.last_hidden_state

    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert sum(isinstance(m, integration.Adapted) for m in clone.modules()) == layers
        assert torch.equal(call(clone), call(model))
        assert len(integration.restore(clone).changed) == layers


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_adapted_blip_describes_an_image_token_for_token(options, softmax_in_double):
    torch.manual_seed(1)
    model = sharpened(without_dropout(blip())).double().eval()
    inputs = {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE, dtype=torch.float64), "input_ids": ids(3)}

    def tokens():
        return model.generate(**inputs, **options, do_sample=False, repetition_penalty=2.0, max_new_tokens=8)

    wanted = tokens()
    assert len(integration.adapt(model).changed) == 6
    assert torch.equal(tokens(), wanted)
    assert len(set(wanted[:, -6:].flatten().tolist())) > 1, "one token all the time shows little"


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", None)
    with pytest.raises(MissingExtraError, match=r'pip install "crossmodal\[transformers\]"'):
        integration.register()


def test_registering_again_changes_nothing():
    check = hf.PreTrainedModel.get_correct_attn_implementation
    integration.register()
    assert hf.PreTrainedModel.get_correct_attn_implementation is check


def test_batch_of_the_inputs_is_what_was_meant():
    assert all(next(iter(model.inputs().values())).shape[0] == BATCH for model in MODELS.values())
