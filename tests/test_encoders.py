"""Encoders: padding changes nothing, nothing in gives nothing out, log-mel is its formula."""

import math

import numpy as np
import pytest
import torch

from crossmodal.data.sample import Modality
from crossmodal.encoders import (
    AudioEncoder,
    CrnnEncoder,
    ImageEncoder,
    LogMel,
    ResNetEncoder,
    SpecAugment,
    TextEncoder,
    TransformerTextEncoder,
    VGG16Encoder,
    ViTEncoder,
    VoiceWarp,
    build_encoder,
)
from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.log_mel import hertz_of, mel_of
from crossmodal.encoders.voice_warp import warp_time
from crossmodal.nn._products import has_instructions

SAMPLE_RATE = 8000


def encoders():
    torch.manual_seed(0)
    sound = torch.randn(3, 4000), torch.tensor([4000, 2500, 0])
    words = torch.randint(2, 50, (3, 9)), torch.tensor([9, 4, 0])
    image = torch.rand(3, 1, 28, 28), torch.tensor([1, 1, 0])
    return {
        "audio": (AudioEncoder(SAMPLE_RATE).eval(), *sound),
        "crnn": (CrnnEncoder(SAMPLE_RATE, 16, hidden=16, augment=SpecAugment()).eval(), *sound),
        "voices": (CrnnEncoder(SAMPLE_RATE, 16, hidden=16, voices=VoiceWarp(LogMel(SAMPLE_RATE))).eval(), *sound),
        "text": (TextEncoder(50).eval(), *words),
        "gru": (TextEncoder(50, kind="gru").eval(), *words),
        "transformer": (TransformerTextEncoder(50).eval(), *words),
        "image": (ImageEncoder((28, 28)).eval(), *image),
        "resnet": (ResNetEncoder((28, 28)).eval(), *image),
        "vit": (ViTEncoder((28, 28)).eval(), *image),
        "vgg16": (VGG16Encoder().eval(), torch.rand(3, 1, 32, 64), torch.tensor([1, 1, 0])),
    }


@pytest.mark.parametrize("name", encoders())
def test_features_and_lengths_fit_each_other(name):
    encoder, values, lengths = encoders()[name]
    out = encoder(values, lengths)
    assert out.features.shape[0] == len(lengths) and out.features.shape[1] >= int(out.lengths.max())
    assert (out.lengths == 0).tolist() == (lengths == 0).tolist()


@pytest.mark.parametrize("name", ["audio", "crnn", "text", "gru", "transformer"])
def test_what_lies_beyond_the_length_changes_nothing(name):
    encoder, values, lengths = encoders()[name]
    clean = encoder(values, lengths)
    changed = values.clone()
    changed[1, int(lengths[1]) :] = 1
    again = encoder(changed, lengths)
    real = int(clean.lengths[1])
    torch.testing.assert_close(again.features[1, :real], clean.features[1, :real])


def test_summary_is_what_both_directions_know_at_their_ends():
    lengths = torch.tensor([4000, 1700, 0])
    encoder = CrnnEncoder(SAMPLE_RATE, 16, hidden=16).eval()
    waves = torch.randn(3, 4000)
    every, count = encoder(waves, lengths)
    encoder.summary = True
    one, there = encoder(waves, lengths)
    assert one.shape == (3, 1, 16) and there.tolist() == [1, 1, 0]
    for row in range(2):
        wanted = torch.cat([every[row, count[row] - 1, :8], every[row, 0, 8:]])
        torch.testing.assert_close(one[row, 0], wanted)
    words = TextEncoder(9, 16, "gru", summary=True)
    assert words(torch.randint(1, 9, (2, 5)), torch.tensor([5, 0])).lengths.tolist() == [1, 0]


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


def test_padding_beyond_a_length_may_hold_nan():
    for name in ("audio", "crnn"):
        encoder, values, lengths = encoders()[name]
        poisoned = values.clone()
        poisoned[1, int(lengths[1]) :] = float("nan")
        poisoned[2] = float("nan")
        assert torch.equal(encoder(poisoned, lengths).features, encoder(values, lengths).features)


GRIDS = [("resnet", 1, 28), ("resnet", 2, 28), ("resnet", 4, 30), ("vit", 7, 28)]


@pytest.mark.parametrize("size", [(32, 32), (70, 129)])
def test_grid_of_vgg16_counts_the_tokens_of_images_of_its_size(size):
    encoder, _ = build_encoder(Modality("image", size=(1, *size)), 48, "vgg16")
    out = encoder(torch.rand(1, 1, *size), torch.ones(1, dtype=torch.int64))
    assert out.features.shape[1] == encoder.grid[0] * encoder.grid[1]
    assert VGG16Encoder().grid is None


@pytest.mark.parametrize(("name", "stem", "size"), GRIDS)
def test_grid_counts_the_tokens(name, stem, size):
    edge = (size, size + (7 if name == "vit" else 5))
    encoder = ResNetEncoder(edge, stem=stem) if name == "resnet" else ViTEncoder(edge, patch=stem)
    out = encoder(torch.rand(2, 1, *edge), torch.ones(2, dtype=torch.int64))
    assert out.features.shape[1] == encoder.grid[0] * encoder.grid[1]


def test_what_all_places_share_is_taken_out_where_places_matter():
    encoder = ResNetEncoder((28, 28), normalize="image", position=0.0)
    out = encoder(torch.rand(2, 1, 28, 28), torch.tensor([1, 0]))
    torch.testing.assert_close(out.features.mean(1), torch.zeros(2, 48), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.features[0].std(0, correction=0), torch.ones(48), rtol=0, atol=0.05)
    assert out.features.isfinite().all()
    with pytest.raises(ValueError, match="normalize must be one of token, image, got 'batch'"):
        ResNetEncoder((28, 28), normalize="batch")


def test_log_mel_is_that_of_librosa():
    librosa = pytest.importorskip("librosa", reason="needs the extra test")
    window, hop, bands, lowest = 320, 160, 40, 60.0
    x = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    mel, frames = LogMel(SAMPLE_RATE, bands=bands, window=window, hop=hop, lowest=lowest)(x, torch.tensor([4000]))
    wanted = librosa.feature.melspectrogram(
        y=x[0].double().numpy(),
        sr=SAMPLE_RATE,
        n_fft=window,
        hop_length=hop,
        n_mels=bands,
        fmin=lowest,
        htk=True,
        norm=None,
        center=False,
    )
    assert mel.shape[1] == frames[0] == wanted.shape[1]
    assert np.abs(mel[0].numpy() - np.log(wanted.T + 1e-6)).max() < 1e-3


# torchvision.models.vgg16: the places of its convolutions, and what goes in and out.
TORCHVISION = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
TORCHVISION |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


def test_vgg16_has_the_keys_and_shapes_of_torchvision():
    found = {name: tuple(weight.shape) for name, weight in VGG16Encoder().state_dict().items()}
    wanted = {}
    for place, (inner, outer) in TORCHVISION.items():
        wanted[f"features.{place}.weight"] = (outer, inner, 3, 3)
        wanted[f"features.{place}.bias"] = (outer,)
    assert found == wanted


def test_vgg16_takes_the_weights_of_torchvision_without_its_classifier():
    source, target = VGG16Encoder(), VGG16Encoder()
    target.load_torchvision({**source.state_dict(), "classifier.0.weight": torch.zeros(1)})
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_frozen_vgg16_passes_gradients_to_the_image_and_keeps_none():
    encoder = VGG16Encoder(frozen=True)
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    encoder(pixels, torch.ones(1, dtype=torch.int64)).features.sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in encoder.parameters())


def test_spec_augment_hides_stripes_in_training_only():
    augment = SpecAugment(bands=3, frames=4)
    mel = torch.ones(64, 30, 20)
    assert torch.equal(augment.eval()(mel), mel)
    hidden = augment.train()(mel) == 0
    whole_frames, whole_bands = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert whole_frames.max() == 4 and whole_bands.max() == 3
    assert (hidden.sum((1, 2)) == whole_frames * 20 + whole_bands * 30 - whole_frames * whole_bands).all()


def test_mel_scale_and_its_inverse():
    hertz = torch.rand(50, dtype=torch.float64) * 4000
    torch.testing.assert_close(hertz_of(mel_of(hertz)), hertz)
    torch.testing.assert_close(mel_of(hertz)[3].item(), mel_of(hertz[3].item()))


def test_longer_vocal_tract_moves_a_tone_by_the_factor():
    """What a filter bank hears of a tone of f Hz goes where it would hear one of a f Hz."""
    torch.manual_seed(2)
    log_mel = LogMel(SAMPLE_RATE, bands=120, window=1024)
    warp = VoiceWarp(log_mel, tract=0.2, tempo=0.0)
    pitch = torch.rand(64) * 1500 + 800
    tones = torch.sin(2 * math.pi * pitch.unsqueeze(1) * torch.arange(4000) / SAMPLE_RATE)
    mel, frames = log_mel(tones, torch.full((64,), 4000))
    warped, same = warp(mel, frames)
    assert torch.equal(same, frames) and warped.shape == mel.shape
    edges = torch.linspace(mel_of(60.0), mel_of(SAMPLE_RATE / 2), 122)
    heard = [hertz_of(edges[1:-1])[one.mean(1).argmax(1)] for one in (mel, warped)]
    factors = heard[1] / heard[0]
    assert 1 / 1.25 < factors.min() < 0.9 and 1.1 < factors.max() < 1.25
    assert torch.equal(warp.eval()(mel, frames)[0], mel)


def test_frames_at_another_speed_are_read_between_the_old_ones():
    """A ramp stays a ramp, of another slope and length; against a loop in float64."""
    frames = torch.tensor([30, 7, 1, 0])
    speeds = torch.tensor([1.3, 0.7, 0.8, 1.1])
    mel = torch.randn(4, 30, 3)
    played, left = warp_time(mel, frames, speeds)
    assert left.tolist() == [23, 9, 1, 0]
    for row in range(4):
        for frame in range(int(left[row])):
            place = frame * float(speeds[row])
            low = min(int(place), int(frames[row]) - 1)
            high, part = min(low + 1, int(frames[row]) - 1), place - int(place)
            wanted = (1 - part) * mel[row, low].double() + part * mel[row, high].double()
            torch.testing.assert_close(played[row, frame], wanted.float(), rtol=1e-4, atol=1e-4)


def test_voices_are_drawn_anew_for_each_sample_and_step_in_training():
    torch.manual_seed(0)
    encoder = build_encoder(
        Modality("audio", sample_rate=SAMPLE_RATE), 16, "crnn", {"hidden": 16, "voices": {"tract": 0.3, "tempo": 0.3}}
    )[0]
    sound = torch.randn(1, 4000).expand(8, -1)
    lengths = torch.tensor([4000] * 7 + [0])
    first, second = encoder(sound, lengths), encoder(sound, lengths)
    assert len(set(first.lengths.tolist())) > 3 and first.lengths[-1] == 0
    assert first.lengths.tolist() != second.lengths.tolist()
    assert torch.isfinite(first.features).all()
    with pytest.raises(ValueError, match=r"tract and tempo must be 0 or more, got -1 and 0"):
        VoiceWarp(LogMel(SAMPLE_RATE), -1, 0)


def test_encoder_is_built_by_name_with_its_options():
    modality = Modality("audio", sample_rate=SAMPLE_RATE)
    options = {"log_mel": {"hop": 80, "window": 200}, "augment": {"bands": 3}}
    encoder, channels = build_encoder(modality, 16, "crnn", options)
    assert (encoder.log_mel.hop, encoder.augment.bands, channels) == (80, 3, 16)
    assert build_encoder(Modality("image", size=(3, 32, 32)), 16, "vgg16")[1] == 512


@pytest.mark.parametrize(
    ("size", "grid"),
    [((28, 28), (4, 4)), ((64, 64), (4, 4)), ((224, 224), (14, 14)), ((8, 12), (4, 6)), ((14, 21), (2, 3))],
)
def test_patches_fill_images_of_usual_sizes(size, grid):
    assert ViTEncoder(size, layers=0).grid == grid
    with pytest.raises(ValueError, match=r"patch must be given for images of \(31, 28\)"):
        ViTEncoder((31, 28))


def test_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="encoder of text must be one of lstm, gru, transformer, huggingface, got 'bert'"
    ):
        build_encoder(Modality("text", vocabulary=9), 16, "bert")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_layers_run_under_autocast_on_any_cpu(kind, dtype):
    """Without instructions for the dtype, torch's LSTM fails, and everything else is slow."""
    torch.manual_seed(0)
    layer = Bidirectional(kind, 16, 8)
    values, lengths = torch.randn(3, 7, 16, requires_grad=True), torch.tensor([7, 0, 4])
    want = layer(values, lengths)
    with torch.autocast("cpu", dtype):
        got = layer(values, lengths)
    torch.testing.assert_close(got.float(), want, atol=0.02, rtol=0.02)
    got.float().square().sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()
    if not has_instructions(dtype):
        assert got.dtype == torch.float32 and got.equal(want)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_residual_network_keeps_channels_beside_each_other(channels):
    """Also those of a grey image, which could lie either way: its first gradient takes torch several times as long."""
    encoder = ResNetEncoder((12, 8), channels)
    seen = []
    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, found: seen.extend((given[0], found)))
    encoder(torch.rand(2, channels, 12, 8), torch.tensor([1, 1]))
    assert len(seen) == 2 * 7 and all(values.stride(1) == 1 for values in seen)
