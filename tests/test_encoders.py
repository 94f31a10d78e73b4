"""Encoders: padding changes nothing, nothing in gives nothing out, log-mel is its formula."""

import math

import numpy as np
import pytest
import torch

from crossmodal.encoders.audio import AudioEncoder
from crossmodal.encoders.image import ImageEncoder
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.text import TextEncoder

SAMPLE_RATE = 8000


def encoders():
    torch.manual_seed(0)
    return {
        "audio": (AudioEncoder(SAMPLE_RATE).eval(), torch.randn(3, 4000), torch.tensor([4000, 2500, 0])),
        "text": (TextEncoder(50).eval(), torch.randint(2, 50, (3, 9)), torch.tensor([9, 4, 0])),
        "image": (ImageEncoder((8, 8)).eval(), torch.rand(3, 1, 8, 8), torch.tensor([1, 1, 0])),
    }


@pytest.mark.parametrize("name", encoders())
def test_features_and_lengths_fit_each_other(name):
    encoder, values, lengths = encoders()[name]
    out = encoder(values, lengths)
    assert out.features.shape[0] == len(lengths) and out.features.shape[1] >= int(out.lengths.max())
    assert (out.lengths == 0).tolist() == (lengths == 0).tolist()


@pytest.mark.parametrize("name", ["audio", "text"])
def test_what_lies_beyond_the_length_changes_nothing(name):
    encoder, values, lengths = encoders()[name]
    clean = encoder(values, lengths)
    changed = values.clone()
    changed[1, int(lengths[1]) :] = 1
    again = encoder(changed, lengths)
    real = int(clean.lengths[1])
    torch.testing.assert_close(again.features[1, :real], clean.features[1, :real])


def test_log_mel_is_its_formula():
    """One frame, computed a second time with numpy from the definition."""
    window, hop, bands, lowest = 320, 160, 40, 60.0
    x = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    mel, frames = LogMel(SAMPLE_RATE, bands=bands, window=window, hop=hop, lowest=lowest)(x, torch.tensor([1000]))
    assert mel.shape == (1, 5, bands) and frames.tolist() == [5]

    t = 2
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    power = np.abs(np.fft.rfft(x[0, t * hop : t * hop + window].double().numpy() * hann)) ** 2
    to_mel = lambda hertz: 2595 * math.log10(1 + hertz / 700)  # noqa: E731
    corners = np.linspace(to_mel(lowest), to_mel(SAMPLE_RATE / 2), bands + 2)
    corners = 700 * (10 ** (corners / 2595) - 1)
    hertz = np.arange(window // 2 + 1) * SAMPLE_RATE / window
    wanted = [math.log(power @ np.interp(hertz, corners[b : b + 3], [0, 1, 0]) + 1e-6) for b in range(bands)]
    assert np.abs(mel[0, t].numpy() - wanted).max() < 1e-3
