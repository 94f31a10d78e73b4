"""The demo's data: deterministic, splits apart from each other, missing and spoiled as asked."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra demo")
pytest.importorskip("espeakng_loader", reason="needs the extra demo")

from crossmodal.data.digit_trio import MODALITIES, SPLITS, DigitTrio
from crossmodal.data.espeak import Espeak, EspeakError
from crossmodal.data.sentences import compose_sentence_of
from crossmodal.demo.config import quick_config


@pytest.fixture(scope="module")
def data():
    config = quick_config()
    return DigitTrio(
        config.seed,
        voices=config.voices,
        held_out_voices=config.held_out_voices,
        rates=config.rates,
        pitches=config.pitches,
    )


def one_batch(data, **options):
    return next(data.batches("train", 24, batch_size=24, **options))


def test_batch_repeats(data):
    first, again = one_batch(data), one_batch(data)
    assert torch.equal(first.labels, again.labels)
    assert all(torch.equal(first.inputs[m], again.inputs[m]) for m in MODALITIES)


def test_epochs_differ(data):
    assert not torch.equal(one_batch(data).inputs["image"], one_batch(data, epoch=1).inputs["image"])


def test_global_random_state_is_left_alone(data):
    torch.manual_seed(0)
    np.random.seed(0)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    one_batch(data)
    assert torch.equal(torch.rand(3), wanted[0]) and (np.random.rand(3) == wanted[1]).all()


def test_one_modality_alone_is_the_same_as_among_others(data):
    assert torch.equal(one_batch(data).inputs["audio"], one_batch(data, modalities=("audio",)).inputs["audio"])


@pytest.mark.parametrize("pair", list(itertools.combinations(SPLITS, 2)), ids=str)
def test_splits_share_no_image_and_no_voice(data, pair):
    first, second = ({row.numpy().tobytes() for row in data.images[split].pixels} for split in pair)
    assert not first & second
    first, second = (set(data.speech[split].voices) for split in pair)
    assert first and second and not first & second


def test_splits_share_no_sentence():
    rng = np.random.default_rng(0)
    sentences = {s: {" ".join(compose_sentence_of(s, d % 10, rng)) for d in range(300)} for s in SPLITS}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not sentences[first] & sentences[second]


def test_missing_modality_has_length_zero(data):
    batch = one_batch(data).without("text")
    assert (batch.lengths["text"] == 0).all() and (batch.lengths["audio"] > 0).all()


def test_modality_turned_to_noise_keeps_its_lengths_and_loses_its_content(data):
    batch = one_batch(data)
    noisy = data.turned_to_noise(batch, "audio")
    assert torch.equal(noisy.lengths["audio"], batch.lengths["audio"])
    assert torch.equal(noisy.inputs["image"], batch.inputs["image"])
    both = torch.stack([noisy.inputs["audio"].flatten(), batch.inputs["audio"].flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.1


def test_speech_library_that_is_none_is_named(tmp_path):
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(EspeakError, match=str(broken)):
        Espeak(library=broken)
