"""Models that spell: CTC and the autoregressive decoder."""

import functools
import itertools

import pytest
import torch
from torch import nn

from crossmodal.data.batch import Batch
from crossmodal.data.sample import Question
from crossmodal.encoders import CrnnEncoder, EncoderOutput, TextEncoder
from crossmodal.models import Captioner, Transcriber, ctc_loss, error_rate, greedy_decode
from crossmodal.models.captioner import CaptionerOutput
from crossmodal.models.ctc import edit_distance
from crossmodal.train.transcription import TranscriptionLearner

SYMBOLS = 5


def make(kind, **options):
    torch.manual_seed(0)
    encoders = {"audio": TextEncoder(9, 16), "image": TextEncoder(9, 16)}
    return kind(encoders, channels=16, symbols=SYMBOLS, width=16, **options)


def make_batch():
    torch.manual_seed(1)
    inputs = {"audio": torch.randint(1, 9, (3, 8)), "image": torch.randint(1, 9, (3, 4))}
    lengths = {"audio": torch.tensor([8, 8, 6]), "image": torch.tensor([4, 0, 2])}
    targets = torch.tensor([[1, 2, 3], [5, 5, -1], [4, -1, -1]])
    return inputs, lengths, targets


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 3]])
    logits = torch.nn.functional.one_hot(path, SYMBOLS + 1).float()
    assert greedy_decode(logits, torch.tensor([7])) == [[1, 1, 2, 3]]
    assert greedy_decode(logits, torch.tensor([2])) == [[1]]
    assert greedy_decode(logits, torch.tensor([0])) == [[]]


def test_ctc_loss_is_minus_the_log_of_the_sum_over_all_paths():
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3)
    probabilities = logits[0].softmax(1)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        merged = [s for s, _ in itertools.groupby(path) if s]
        if merged == [1, 2]:
            total += torch.stack([probabilities[t, s] for t, s in enumerate(path)]).prod().item()
    got = ctc_loss(logits, torch.tensor([4]), torch.tensor([[1, 2, -1]]))
    assert got.item() == pytest.approx(-torch.tensor(total).log().item() / 2, rel=1e-4)


@pytest.mark.parametrize("targets", [[1, 0, 2], [-1, 1, 2], [0, 0, 0]])
def test_symbols_are_counted_from_one_and_padding_is_behind_them(targets):
    with pytest.raises(ValueError, match="targets must be symbols from 1, then padding of negative numbers"):
        ctc_loss(torch.randn(1, 9, 4), torch.tensor([9]), torch.tensor([targets]))


def test_target_longer_than_the_speech_adds_nothing_and_no_infinity():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([2]), torch.tensor([[1, 2, 1]]))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_edit_distance_is_its_recursion():
    @functools.cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for a, b in itertools.product(["", "ab", "abcd", "bca", "ddd", "cab"], repeat=2):
        assert edit_distance(a, b) == slow(a, b)


def test_error_rate_weighs_by_length():
    assert error_rate([[1, 2, 3], [4]], [[1, 2, 4], [4]]) == pytest.approx(1 / 4)


@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_missing_second_source_is_the_same_left_out_and_of_length_zero(kind):
    model = make(kind).eval()
    inputs, lengths, targets = make_batch()
    less = {"audio": lengths["audio"]}
    zeroed = {**lengths, "image": torch.zeros_like(lengths["image"])}
    first, second = (model(inputs, given, targets) for given in (less, zeroed))
    torch.testing.assert_close(first.logits, second.logits)


@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_positions_are_asked_for_and_not_told(kind):
    """They change what is attended to; where queries ask for nothing, nothing."""
    plain, placed = make(kind).eval(), make(kind, positions={"audio": 1.0}).eval()
    placed.load_state_dict(plain.state_dict())
    batch = make_batch()
    assert not torch.allclose(plain(*batch).logits, placed(*batch).logits, atol=1e-3)
    for model in (plain, placed):
        for name, parameter in model.named_parameters():
            if ".to_query." in name:
                nn.init.zeros_(parameter)
    assert torch.equal(plain(*batch).logits, placed(*batch).logits)
    with pytest.raises(ValueError, match="positions must be of audio, image, got 'smell'"):
        make(kind, positions={"smell": 1.0})


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float16, 0.01), (torch.float64, 1e-4)])
@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_positions_have_the_dtype_of_the_tokens(kind, dtype, atol):
    model = make(kind, positions={"audio": 1.0}).eval()
    wanted = model(*make_batch()).logits
    got = model.to(dtype)(*make_batch()).logits
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_easier_questions_are_answered_beside_the_text(kind):
    plain, asked = (make(kind, auxiliary=questions) for questions in (None, {"image": Question("number", 9)}))
    asked.load_state_dict(plain.state_dict(), strict=False)
    inputs, lengths, targets = make_batch()
    first, second = (model.eval()(inputs, lengths, targets) for model in (plain, asked))
    assert torch.equal(first.logits, second.logits) and not first.auxiliary
    assert {name: logits.shape for name, logits in second.auxiliary.items()} == {"image": (3, 9)}
    assert not asked({"audio": inputs["audio"]}, {"audio": lengths["audio"]}, targets).auxiliary


@pytest.mark.parametrize("grid", [None, (4, 18)])
def test_question_about_cells_that_the_encoder_does_not_have_is_refused(grid):
    encoder = TextEncoder(9, 16)
    if grid:
        encoder.grid = grid
    question = Question("digit", 11, (1, 5))
    with pytest.raises(ValueError, match=r"encoder of image must have a grid .* multiple of \(1, 5\) .*, got "):
        Captioner({"image": encoder}, channels=16, symbols=3, width=16, auxiliary={"image": question})


@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_answers_to_easier_questions_are_learnt_with_the_text(kind):
    """A sample without the image is asked nothing."""
    model = make(kind, auxiliary={"image": Question("number", 9)})
    inputs, lengths, targets = make_batch()
    batch = Batch(inputs, lengths, targets, auxiliary={"image": torch.tensor([3, 0, 7])})
    losses = [
        TranscriptionLearner(tuple(model.encoders), auxiliary_weight=weight).step(model, batch).loss
        for weight in (0.0, 2.0)
    ]
    logits = model(inputs, lengths, targets).auxiliary["image"]
    wanted = nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([3, 7]), reduction="sum") / 3
    torch.testing.assert_close(losses[1] - losses[0], 2 * wanted)


@pytest.mark.parametrize("kind", [Transcriber, Captioner])
def test_model_learns_to_spell_what_it_is_shown(kind):
    model = make(kind)
    inputs, lengths, targets = make_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(model(inputs, lengths, targets), targets).backward()
        optimizer.step()
    assert model.transcribe(inputs, lengths) == [[1, 2, 3], [5, 5], [4]]


def test_decoder_does_not_see_what_comes_after():
    model = make(Captioner).eval()
    inputs, lengths, targets = make_batch()
    changed = targets.clone()
    changed[:, 2] = 5
    first, second = (model(inputs, lengths, said).logits for said in (targets, changed))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[0, 3], second[0, 3])


def test_decoder_stops_at_its_longest_text():
    model = make(Captioner, longest=4)
    with torch.no_grad():
        model.head[-1].bias.copy_(torch.tensor([-100.0, 100, 0, 0, 0, 0]))
    inputs, lengths, _ = make_batch()
    assert model.transcribe(inputs, lengths) == [[1] * 4] * 3


def test_decoder_loss_charges_the_end_and_no_padding():
    model = make(Captioner)
    logits = torch.zeros(1, 4, SYMBOLS + 1)
    logits[0, 1, 0] = 3.0  # the end, after the one symbol of the target
    got = model.loss(CaptionerOutput(logits), torch.tensor([[2, -1, -1]]))
    wanted = nn.functional.cross_entropy(logits[0, :2], torch.tensor([2, 0]))
    torch.testing.assert_close(got, wanted)


def test_speech_that_has_no_encoder_is_refused():
    with pytest.raises(ValueError, match="speech must be one of image, got 'audio'"):
        Transcriber({"image": TextEncoder(9, 16)}, channels=16, symbols=3)


def test_speech_summed_up_into_one_token_is_refused():
    with pytest.raises(ValueError, match="summary must be False for the encoder of audio"):
        Transcriber({"audio": CrnnEncoder(8000, 16, summary=True)}, channels=16, symbols=3)


def test_encoder_output_of_speech_decides_the_length():
    model = make(Transcriber).eval()
    inputs, lengths, _ = make_batch()
    assert isinstance(model.encoders["audio"](inputs["audio"], lengths["audio"]), EncoderOutput)
    assert model(inputs, lengths).lengths.tolist() == [8, 8, 6]
