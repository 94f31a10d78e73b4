"""Where a token stands: asked for, and not told."""

import pytest
import torch

from crossmodal.models import Positions
from crossmodal.models.positions import sinusoids


def test_sinusoids_come_back_after_their_wavelengths():
    waves = sinusoids(65, 6, shortest=4, longest=64)
    torch.testing.assert_close(waves[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    for column, length in enumerate((4, 16, 64)):
        torch.testing.assert_close(waves[length, column::3], waves[0, column::3], rtol=0, atol=1e-5)
        torch.testing.assert_close(waves[length // 4, column], torch.tensor(1.0))
    with pytest.raises(ValueError, match="channels must be even, got 5"):
        sinusoids(3, 5)


def test_modalities_without_a_factor_have_no_place():
    positions = Positions({"audio": 0.5, "text": 0}, ["audio", "image", "text"], 8)
    tokens = torch.randn(2, 7, 8)
    torch.testing.assert_close(positions.of("audio", tokens), 0.5 * sinusoids(7, 8))
    assert positions.of("image", tokens) is None and positions.of("text", tokens) is None


@pytest.mark.parametrize(
    ("factors", "width", "message"),
    [
        ({"smell": 1.0}, 8, "positions must be of audio, image, got 'smell'"),
        ({"audio": True}, 8, "positions must be numbers by modality, got True for audio"),
        ({"audio": "near"}, 8, "got 'near' for audio"),
        ({"audio": float("nan")}, 8, "got nan for audio"),
        ({"audio": 1e39}, 8, "got 1e\\+39 for audio"),
        ({"audio": 1.0}, 7, "width must be even with positions, got 7"),
    ],
)
def test_positions_that_mean_nothing_are_refused(factors, width, message):
    with pytest.raises(ValueError, match=message):
        Positions(factors, ["audio", "image"], width)


def test_an_odd_width_without_positions_is_none_of_their_business():
    assert Positions(None, ["audio"], 7).of("audio", torch.randn(1, 2, 7)) is None
