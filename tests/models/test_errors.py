"""What models refuse, each in one line that says what would be right."""

import re

import pytest
import torch

from crossmodal.blocks import CommonAttention
from crossmodal.data.sample import Question
from crossmodal.encoders import TextEncoder
from crossmodal.models import (
    FUSIONS,
    Captioner,
    Form,
    FusionClassifier,
    Transcriber,
    TwoTower,
    build_fusion,
    ctc_loss,
    modality_sets,
)

SYMBOLS, LONGEST = 5, 6
MAKE = {
    "classifier": lambda encoders, **options: FusionClassifier(encoders, **{"num_classes": 3, **options}),
    "two_tower": TwoTower,
    "transcriber": lambda encoders, **options: Transcriber(encoders, **{"symbols": SYMBOLS, **options}),
    "captioner": lambda encoders, **options: Captioner(encoders, **{"symbols": SYMBOLS, "longest": LONGEST, **options}),
}


def make(kind, **options):
    torch.manual_seed(0)
    encoders = {"audio": TextEncoder(9, 8), "text": TextEncoder(9, 8)}
    return MAKE[kind](encoders, **{"channels": 8, "width": 8, **options})


def make_batch(names=("audio", "text")):
    return {n: torch.randint(1, 9, (2, 7)) for n in names}, {n: torch.tensor([7, 4]) for n in names}


def call(kind, model, inputs, lengths):
    return model(inputs, lengths, *([torch.tensor([[1, 2], [3, -1]])] if kind == "captioner" else []))


@pytest.mark.parametrize("kind", MAKE)
def test_without_encoders_there_is_no_model(kind):
    with pytest.raises(ValueError, match="encoders must hold at least one modality, got none"):
        MAKE[kind]({}, channels=8)


@pytest.mark.parametrize("name", ["a.b", "", "keys", 3])
@pytest.mark.parametrize("kind", MAKE)
def test_modalities_have_names_that_modules_can_have(kind, name):
    with pytest.raises(ValueError, match=re.escape(f"encoders must have names that modules can have, got {name!r}: ")):
        MAKE[kind]({name: TextEncoder(9, 8)}, channels=8)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": {"audio": 8}}, "channels must have a number for text, got audio"),
        ({"channels": 0}, "channels of audio must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"implementation": "x"}, "implementation must be one of fused, reference, got 'x'"),
    ],
)
def test_arguments_of_all_models_that_cannot_be_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classifier", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ("classifier", {"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ("classifier", {"fusion": "cross", "layers": 0}, "layers must be at least 1, got 0"),
        ("classifier", {"fusion": "bottleneck", "layers": -1}, "layers must be at least 1, got -1"),
        ("classifier", {"fusion": "cross", "likeness": -1.0}, "likeness must be 0 or more and finite, got -1.0"),
        ("classifier", {"fusion": "cross", "likeness": float("nan")}, "likeness must be 0 or more and finite, got nan"),
        (
            "classifier",
            {"experts": "product", "num_classes": 1},
            "experts must be none or auxiliary for a single output",
        ),
        ("two_tower", {"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ("transcriber", {"symbols": 0}, "symbols must be at least 1, got 0"),
        ("transcriber", {"layers": -1}, "layers must be at least 0, got -1"),
        ("captioner", {"symbols": 0}, "symbols must be at least 1, got 0"),
        ("captioner", {"longest": 0}, "longest must be at least 1, got 0"),
        ("captioner", {"auxiliary": {"smell": Question("what", 2)}}, "auxiliary must be of audio, text, got 'smell'"),
    ],
)
def test_arguments_that_cannot_be_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("field", ["modalities", "width", "num_heads", "num_queries", "layers", "rank"])
def test_numbers_of_a_form_are_positive(name, field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        build_fusion(name, Form(2)._replace(**{field: 0}))


def test_unknown_implementation_is_refused_later_too():
    model = make("classifier")
    with pytest.raises(ValueError, match="implementation must be one of fused, reference, got 'torch'"):
        model.implementation = "torch"
    assert model.implementation == "fused"
    with pytest.raises(ValueError, match="implementation must be one of fused, reference, got 'torch'"):
        CommonAttention(8, implementation="torch")


@pytest.mark.parametrize("kind", MAKE)
def test_misspelt_modality_is_refused(kind):
    model, (inputs, lengths) = make(kind), make_batch(("audio", "txet"))
    message = "inputs and lengths must be of audio, text, got 'txet' and none of text"
    for given in (lengths, {"audio": lengths["audio"]}):
        with pytest.raises(ValueError, match=message):
            call(kind, model, inputs, given)


@pytest.mark.parametrize("kind", MAKE)
def test_model_reads_what_it_knows_of_a_batch_that_has_more(kind):
    model, (inputs, lengths) = make(kind).eval(), make_batch(("audio", "text", "image"))
    less = [{name: one[name] for name in ("audio", "text")} for one in (inputs, lengths)]
    for more, alone in zip(call(kind, model, inputs, lengths), call(kind, model, *less), strict=True):
        torch.testing.assert_close(more, alone)


@pytest.mark.parametrize("kind", MAKE)
def test_lengths_of_an_input_that_is_not_there_are_refused(kind):
    model, (inputs, lengths) = make(kind), make_batch()
    with pytest.raises(ValueError, match="inputs must hold text, for which there are lengths, got audio"):
        call(kind, model, {"audio": inputs["audio"]}, lengths)


def test_sets_have_a_column_per_modality():
    model, batch = make("classifier"), make_batch()
    for sets in (modality_sets(3), modality_sets(2).float(), modality_sets(2)[:0], torch.ones(2, dtype=torch.bool)):
        with pytest.raises(
            ValueError, match=r"sets must be bool of shape \(sets, modalities\) = \(1 or more, 2\), got"
        ):
            model(*batch, sets=sets)
    with pytest.raises(ValueError, match="return_mass must be False with sets, got True"):
        model(*batch, sets=modality_sets(2), return_mass=True)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        modality_sets(0)


def test_symbols_above_the_last_are_refused():
    above, message = torch.tensor([[1, 9], [2, -1]]), f"must be at most {SYMBOLS}, the number of symbols, got 9"
    with pytest.raises(ValueError, match="targets " + message):
        ctc_loss(torch.randn(2, 4, SYMBOLS + 1), torch.tensor([4, 4]), above)
    batch = make_batch()
    transcriber, captioner = make("transcriber"), make("captioner")
    with pytest.raises(ValueError, match="targets " + message):
        transcriber.loss(transcriber(*batch), above)
    with pytest.raises(ValueError, match="said " + message):
        captioner(*batch, above)
    with pytest.raises(ValueError, match="targets " + message):
        captioner.loss(captioner(*batch, above.clamp(max=SYMBOLS)), above)


def test_ctc_loss_is_the_mean_over_all_samples():
    """One that has too few tokens for its target counts 0, and is counted."""
    logits, lengths = torch.randn(2, 4, SYMBOLS + 1), torch.tensor([4, 4])
    targets = torch.tensor([[1, 2, -1, -1, -1], [1, 1, 1, 1, 1]])
    torch.testing.assert_close(ctc_loss(logits, lengths, targets), ctc_loss(logits[:1], lengths[:1], targets[:1]) / 2)


def test_captioner_says_what_it_cannot_read():
    model, batch = make("captioner"), make_batch()
    with pytest.raises(ValueError, match=f"said must hold at most {LONGEST} symbols, longest, got 7"):
        model(*batch, torch.ones(2, LONGEST + 1, dtype=torch.int64))
    longest = torch.ones(2, LONGEST, dtype=torch.int64)
    assert model.loss(model(*batch, longest), longest).isfinite()
    with pytest.raises(ValueError, match=r"targets must have the shape of what was said, \(2, 6\), got \(2, 3\)"):
        model.loss(model(*batch, longest), longest[:, :3])
    for ask in (model.transcribe, lambda *nothing: model(*nothing, longest)):
        with pytest.raises(ValueError, match="lengths must hold at least one modality, got none"):
            ask({}, {})


def test_transcriber_needs_speech():
    model, (inputs, lengths) = make("transcriber"), make_batch()
    with pytest.raises(ValueError, match="lengths must hold audio, which is spelt, got text"):
        model(inputs, {"text": lengths["text"]})
    with pytest.raises(ValueError, match="lengths must hold audio, which is spelt, got none"):
        model.transcribe({}, {})
