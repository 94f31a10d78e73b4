"""Every form of fusion: implementations agree, what is missing has no influence, the mass adds up."""

import pytest
import torch
from torch import nn

from crossmodal.encoders import EncoderOutput
from crossmodal.models import FUSIONS, Form, FusionClassifier, build_fusion, modality_sets
from crossmodal.models.fusion_classifier import FusionOutput

WIDTH, HEADS, BATCH = 16, 4, 4
LENGTHS = (torch.tensor([5, 2, 0, 0]), torch.tensor([7, 0, 7, 0]), torch.tensor([1, 3, 3, 0]))
SIZES = (5, 7, 3)
BIASES = [torch.tensor([0.5, -1.0, 2.0, 0.0]), None, torch.tensor([1.0, 1.0, -2.0, 0.0])]
WEIGHING = [name for name, fusion in FUSIONS.items() if fusion.weighs]
ATTENDING = ["queries", "source", "cross", "bottleneck"]


def make(name, layers=1):
    return build_fusion(name, Form(3, WIDTH, HEADS, num_queries=2, layers=layers))


def make_tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        EncoderOutput(torch.randn(BATCH, size, WIDTH, generator=generator), lengths)
        for size, lengths in zip(SIZES, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", FUSIONS)
def test_implementations_agree(name, layers):
    fusion, tokens = make(name, layers), make_tokens()
    found = []
    for implementation in ("fused", "reference"):
        for module in fusion.modules():
            if hasattr(module, "implementation"):
                module.implementation = implementation
        features = fusion(tokens, BIASES).features
        gradients = torch.autograd.grad(features.square().sum(), list(fusion.parameters()), allow_unused=True)
        found.append([features, *(torch.zeros(()) if g is None else g for g in gradients)])
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FUSIONS)
def test_features_have_the_promised_size(name):
    fusion = make(name)
    assert fusion(make_tokens(), BIASES).features.shape == (BATCH, fusion.out_features)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_padding_or_missing_has_no_influence(name, layers):
    fusion, tokens = make(name, layers), make_tokens()
    changed = [
        one._replace(
            features=torch.where(
                torch.arange(one.features.shape[1]).view(1, -1, 1) < one.lengths.view(-1, 1, 1), one.features, 100.0
            )
        )
        for one in tokens
    ]
    assert not torch.equal(changed[0].features, tokens[0].features)
    torch.testing.assert_close(fusion(changed, BIASES).features, fusion(tokens, BIASES).features)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_there_has_influence(name):
    """The test above would pass for a form that sees nothing."""
    fusion, tokens = make(name), make_tokens()
    before = fusion(tokens, BIASES).features
    for column in range(3):
        other = list(tokens)
        other[column] = make_tokens(seed=1)[column]
        after = fusion(other, BIASES).features
        present = LENGTHS[column] > 0
        assert (after[present] != before[present]).any(1).all()
        torch.testing.assert_close(after[~present], before[~present])


@pytest.mark.parametrize("name", FUSIONS)
def test_modality_left_out_is_the_same_as_length_zero(name):
    fusion, tokens = make(name), make_tokens()
    gone = tokens[1]._replace(lengths=torch.zeros_like(LENGTHS[1]))
    without, zeroed = ([tokens[0], one, tokens[2]] for one in (None, gone))
    torch.testing.assert_close(fusion(without, BIASES).features, fusion(zeroed, BIASES).features)


@pytest.mark.parametrize("name", FUSIONS)
def test_answers_over_sets_are_those_without_the_others(name):
    fusion, tokens, sets = make(name), make_tokens(), modality_sets(3)
    together = fusion.over_sets(tokens, BIASES, sets)
    for row, kept in enumerate(sets.tolist()):
        alone = [one if keep else None for one, keep in zip(tokens, kept, strict=True)]
        torch.testing.assert_close(together[row], fusion(alone, BIASES).features)


@pytest.mark.parametrize("name", FUSIONS)
def test_answers_over_sets_of_which_nothing_is_there_are_those_without_any(name):
    fusion, (first, *_) = make(name), make_tokens()
    together = fusion.over_sets([first, None, None], BIASES, modality_sets(3))
    nothing = fusion([first._replace(lengths=torch.zeros_like(first.lengths)), None, None], BIASES).features
    for row, kept in zip(together, modality_sets(3).tolist(), strict=True):
        wanted = fusion([first, None, None], BIASES).features if kept[0] else nothing
        torch.testing.assert_close(row, wanted)


@pytest.mark.parametrize("name", FUSIONS)
def test_sample_without_any_modality_is_finite_and_so_are_all_gradients(name):
    fusion = make(name)
    features = fusion(make_tokens(), BIASES).features
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in fusion.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", WEIGHING)
def test_mass_sums_to_one_and_is_zero_where_a_modality_is_missing(name):
    mass = make(name)(make_tokens(), BIASES, return_mass=True).mass  # (B, heads, queries, modalities)
    missing = torch.stack([lengths == 0 for lengths in LENGTHS], 1)
    assert (mass.mean((1, 2))[missing] == 0).all()
    together = mass.mean(1).sum(2)  # of each query of the samples 0 and 1, where a query sees more than one modality
    assert ((together[0] - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("name", WEIGHING)
def test_bias_moves_mass(name):
    fusion, tokens = make(name), make_tokens()
    raised = [torch.full((BATCH,), 5.0), None, None]
    before, after = (fusion(tokens, biases, return_mass=True).mass[0, ..., 0].mean() for biases in ([None] * 3, raised))
    assert after > before + 0.1


@pytest.mark.parametrize("name", ATTENDING)
def test_attention_adds_up_to_one_and_skips_padding(name):
    parts = make(name, layers=2).attention(make_tokens(), BIASES)
    assert [part.shape[2] for part in parts] == list(SIZES)
    together = sum(part.sum(2) for part in parts)
    torch.testing.assert_close(together[0], torch.ones_like(together[0]))
    for part, lengths in zip(parts, LENGTHS, strict=True):
        for row, length in enumerate(lengths.tolist()):
            assert (part[row, :, length:] == 0).all()


@pytest.mark.parametrize("name", FUSIONS)
def test_form_learns_what_no_modality_knows_alone(name):
    """The label is whether two bits, one in each modality, differ."""
    torch.manual_seed(1)

    class Bit(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(2, WIDTH)

        def forward(self, values, lengths):
            return EncoderOutput(self.embed(values), lengths)

    model = FusionClassifier({"a": Bit(), "b": Bit()}, channels=WIDTH, num_classes=2, width=WIDTH, fusion=name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    inputs = {"a": bits[:, :1], "b": bits[:, 1:]}
    lengths = {"a": torch.ones(4, dtype=torch.int64), "b": torch.ones(4, dtype=torch.int64)}
    labels = bits[:, 0] ^ bits[:, 1]
    for _ in range(150):
        optimizer.zero_grad()
        output: FusionOutput = model(inputs, lengths)
        nn.functional.cross_entropy(output.logits, labels).backward()
        optimizer.step()
    assert (model(inputs, lengths).logits.argmax(1) == labels).all()


def test_unknown_form_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of queries, concat, .*got 'sum'"):
        build_fusion("sum", Form(2))
