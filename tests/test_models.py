"""The fusion classifier: both implementations agree, missing modalities count for nothing."""

import pytest
import torch

from crossmodal.encoders import AudioEncoder, ImageEncoder, TextEncoder, ViTEncoder
from crossmodal.models import Captioner, FusionClassifier, Transcriber, TwoTower, modality_sets

BATCH, CLASSES, CHANNELS = 5, 7, 16


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoders = {
        "image": ImageEncoder((8, 8), channels=CHANNELS),
        "text": TextEncoder(30, CHANNELS),
        "audio": AudioEncoder(8000, CHANNELS),
    }
    return FusionClassifier(encoders, channels=CHANNELS, num_classes=CLASSES, width=24, num_heads=4, num_queries=3)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "image": torch.rand(BATCH, 1, 8, 8, generator=generator),
        "text": torch.randint(2, 30, (BATCH, 6), generator=generator),
        "audio": torch.randn(BATCH, 3000, generator=generator),
    }
    lengths = {
        "image": torch.tensor([1, 0, 1, 1, 0]),
        "text": torch.tensor([6, 2, 0, 1, 0]),
        "audio": torch.tensor([3000, 900, 1500, 0, 0]),
    }
    return inputs, lengths


def gradients(model, inputs, lengths, **options):
    model.zero_grad()
    model(inputs, lengths, **options).logits.square().sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("sets", [None, modality_sets(3)], ids=["one answer", "sets"])
def test_implementations_agree(model, batch, sets):
    answers, learnt = [], []
    for implementation in ("fused", "reference"):
        model.implementation = implementation
        answers.append(model(*batch, sets=sets).logits)
        learnt.append(gradients(model, *batch, sets=sets))
    torch.testing.assert_close(answers[0], answers[1])
    for name, gradient in learnt[0].items():
        torch.testing.assert_close(gradient, learnt[1][name], rtol=1e-4, atol=1e-4, msg=name)


def test_mass_is_zero_where_a_modality_is_missing_and_sums_to_one_elsewhere(model, batch):
    inputs, lengths = batch
    mass = model(inputs, lengths, return_mass=True).mass
    missing = torch.stack([lengths[name] == 0 for name in model.modalities], dim=1)  # (B, modalities)
    assert (mass.permute(0, 3, 1, 2)[missing] == 0).all()
    wanted = (~missing).any(1).float().view(-1, 1, 1).expand(BATCH, 4, 3)
    torch.testing.assert_close(mass.sum(3), wanted)


def test_attention_adds_up_to_the_mass(model, batch):
    attention = model.attention(*batch)
    mass = model(*batch, return_mass=True).mass.mean(1)  # over the heads: (B, queries, modalities)
    for column, name in enumerate(model.modalities):
        torch.testing.assert_close(attention[name].sum(2), mass[:, :, column])


def test_answers_from_sets_are_the_answers_without_the_others(model, batch):
    inputs, lengths = batch
    sets = modality_sets(3)
    logits = model(inputs, lengths, sets=sets).logits
    for row, kept in enumerate(sets.tolist()):
        remaining = {name: lengths[name] * keep for name, keep in zip(model.modalities, kept, strict=True)}
        torch.testing.assert_close(logits[row], model(inputs, remaining).logits)


def test_modality_left_out_is_the_same_as_length_zero(model, batch):
    inputs, lengths = batch
    without = {name: lengths[name] for name in ("image", "audio")}
    zeroed = {**lengths, "text": torch.zeros_like(lengths["text"])}
    torch.testing.assert_close(model(inputs, without).logits, model(inputs, zeroed).logits)


def test_padding_and_missing_inputs_may_hold_nan(model, batch):
    inputs, lengths = batch
    poisoned = {name: values.clone() for name, values in inputs.items()}
    poisoned["image"][lengths["image"] == 0] = float("nan")
    for row, length in enumerate(lengths["audio"].tolist()):
        poisoned["audio"][row, length:] = float("nan")
    assert torch.equal(model(poisoned, lengths).logits, model(inputs, lengths).logits)
    clean = gradients(model, inputs, lengths)
    for name, gradient in gradients(model, poisoned, lengths).items():
        assert torch.equal(gradient, clean[name]), name


def test_sample_without_any_modality_is_answered_with_finite_numbers(model, batch):
    assert model(*batch).logits[4].isfinite().all()


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 3), (3, 7), (4, 9)])
def test_sets_are_distinct_not_empty_and_begin_with_everything(count, wanted):
    sets = modality_sets(count)
    assert sets.shape == (wanted, count) and sets[0].all() and sets.any(1).all()
    assert len({tuple(row) for row in sets.tolist()}) == wanted


def test_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of num_heads, got 10 and 4"):
        FusionClassifier({"text": TextEncoder(9, 4)}, channels=4, num_classes=2, width=10, num_heads=4)


@pytest.mark.parametrize("kind", ["classifier", "captioner", "transcriber", "two_tower"])
def test_a_model_has_its_implementation_in_all_its_parts(kind):
    """Whether it was built with it or changed to it, and in its encoders too."""
    make = {
        "classifier": lambda *given, **options: FusionClassifier(*given, num_classes=CLASSES, **options),
        "captioner": lambda *given, **options: Captioner(*given, symbols=5, **options),
        "transcriber": lambda *given, **options: Transcriber(*given, symbols=5, **options),
        "two_tower": TwoTower,
    }[kind]

    def build(implementation):
        encoders = {"image": ViTEncoder((8, 8), patch=4, channels=16), "audio": AudioEncoder(8000, CHANNELS)}
        return make(encoders, channels=CHANNELS, width=24, implementation=implementation)

    def parts(model):
        return {part.implementation for part in model.modules() if "implementation" in vars(part)}

    for one, other in (("fused", "reference"), ("reference", "fused")):
        model = build(one)
        assert model.implementation == one and parts(model) == {one}
        model.implementation = other
        assert model.implementation == other and parts(model) == {other}
