"""Augmentation: random, repeatable, within its bounds; mixing at an SNR is its formula."""

import numpy as np
import pytest
import torch

from crossmodal.data.augment_audio import AudioAugment, mix_at_snr
from crossmodal.data.augment_image import ImageAugment, random_crop, random_erase
from crossmodal.data.augment_text import TextAugment

IMAGE = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(4000, generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(2, 42)
CASES = {
    "image": (ImageAugment(crop=0.5, flip=True, erase=0.9), IMAGE),
    "audio": (AudioAugment(gain_db=6.0, snr_db=(0.0, 20.0)), SOUND),
    "text": (TextAugment(drop=0.3, unknown=0.3), WORDS),
}


@pytest.mark.parametrize("kind", CASES)
def test_augmentation_is_a_function_of_the_generator(kind):
    augment, values = CASES[kind]
    first, again, other = (augment(values, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize(("make", "values"), [(ImageAugment, IMAGE), (AudioAugment, SOUND), (TextAugment, WORDS)])
def test_nothing_is_changed_by_default(make, values):
    assert torch.equal(make()(values, np.random.default_rng(0)), values)


def test_crop_of_the_whole_is_the_image():
    torch.testing.assert_close(random_crop(IMAGE, np.random.default_rng(0), 1.0), IMAGE)


def test_erased_rectangle_is_the_mean_and_no_larger_than_asked():
    for seed in range(30):
        erased = random_erase(IMAGE, np.random.default_rng(seed), 0.2)
        changed = (erased != IMAGE).any(0)
        assert 0 < changed.sum() <= 1.5 * 0.2 * 240  # edges are rounded
        torch.testing.assert_close(erased[:, changed], IMAGE.mean((1, 2)).unsqueeze(1).expand(-1, int(changed.sum())))


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 15.0])
def test_mixture_has_the_ratio_that_was_asked_for(snr_db):
    noise = 7 * torch.randn(4000)
    added = mix_at_snr(SOUND, noise, snr_db) - SOUND
    ratio = 10 * torch.log10(SOUND.square().mean() / added.square().mean())
    assert ratio.item() == pytest.approx(snr_db, abs=0.01)


def test_silence_stays_silence():
    assert (mix_at_snr(torch.zeros(10), torch.randn(10), 0.0) == 0).all()


def test_gain_stays_within_its_bounds():
    gains = [AudioAugment(gain_db=6.0)(SOUND, np.random.default_rng(seed)).std() / SOUND.std() for seed in range(40)]
    decibels = 20 * torch.stack(gains).log10()
    assert decibels.abs().max() <= 6.001 and decibels.max() > 3 and decibels.min() < -3


def test_one_word_always_stays():
    for seed in range(20):
        assert len(TextAugment(drop=0.99)(WORDS[:3], np.random.default_rng(seed))) >= 1
    assert len(TextAugment(drop=0.99)(WORDS[:0], np.random.default_rng(0))) == 0
