"""Encoders: padding changes nothing, nothing in gives nothing out, log-mel is its formula."""

import json
import math
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch

from crossmodal.data.sample import Modality
from crossmodal.encoders import (
    AudioEncoder,
    CrnnEncoder,
    HuggingFaceEncoder,
    ImageEncoder,
    LogMel,
    ResNetEncoder,
    SpecAugment,
    TextEncoder,
    TimmEncoder,
    TransformerTextEncoder,
    VGG16Encoder,
    ViTEncoder,
    VoiceWarp,
    build_encoder,
)
from crossmodal.encoders.bidirectional import Bidirectional
from crossmodal.encoders.build import settled_options
from crossmodal.encoders.log_mel import hertz_of, mel_of
from crossmodal.encoders.preparation import preparation_of, saved_normalization
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


def tiny(name, **options):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, **options}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()


WAV2VEC2 = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 2), "num_conv_pos_embeddings": 4}
WAV2VEC2 |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "feat_extract_norm": "layer"}
BACKBONES = {
    "text": lambda: (tiny("Bert", vocab_size=50), torch.randint(2, 50, (3, 9)), torch.tensor([9, 4, 0])),
    "image": lambda: (
        tiny("ViT", image_size=16, patch_size=8),
        torch.rand(3, 3, 16, 16),
        torch.tensor([1, 1, 0]),
    ),
    "audio": lambda: (
        tiny("Wav2Vec2", **WAV2VEC2),
        torch.randn(3, 400),
        torch.tensor([400, 200, 0]),
    ),
}


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


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbone_of_transformers_is_an_encoder(kind):
    model, values, lengths = BACKBONES[kind]()
    out = HuggingFaceEncoder(model, kind)(values, lengths)
    assert out.features.shape[::2] == (3, 16) and out.features.isfinite().all()
    assert (out.lengths == 0).tolist() == (lengths == 0).tolist()
    assert int(out.lengths.max()) <= out.features.shape[1]
    if kind != "image":
        assert out.lengths[1] < out.lengths[0]
        changed = values.clone()
        changed[1, int(lengths[1]) :] = 1
        real = int(out.lengths[1])
        again = HuggingFaceEncoder(model, kind)(changed, lengths)
        torch.testing.assert_close(again.features[1, :real], out.features[1, :real])


@pytest.fixture
def alone(monkeypatch):
    """A group of this process only."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbone_learns_under_distributed_data_parallel(alone, kind):
    model, values, lengths = BACKBONES[kind]()
    model.config.layerdrop = 0.0  # which layers learn is drawn anew for each step
    encoder = torch.nn.parallel.DistributedDataParallel(HuggingFaceEncoder(model, kind))
    for _ in range(2):
        encoder(values, lengths).features.square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)


UNUSED = {
    "Bert": ("text", {"vocab_size": 50}, {"pooler"}),
    "ViT": ("image", {"image_size": 16, "patch_size": 8}, {"pooler"}),
    "CLIPVision": ("image", {"image_size": 16, "patch_size": 8}, {"post_layernorm"}),
    "Dinov2": ("image", {"image_size": 16, "patch_size": 8}, {"embeddings"}),  # its token that masks
    "DistilBert": ("text", {"vocab_size": 50, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16}, set()),
}


@pytest.mark.parametrize("name", UNUSED)
def test_weights_that_features_do_not_depend_on_do_not_learn(name):
    kind, options, unused = UNUSED[name]
    encoder = HuggingFaceEncoder(tiny(name, **options), kind)
    still = {weight.split(".")[1] for weight, value in encoder.named_parameters() if not value.requires_grad}
    assert still == unused
    assert sum(value.requires_grad for value in encoder.parameters()) > 10


def test_looking_for_unused_weights_leaves_modes_and_random_state_alone():
    model = tiny("Wav2Vec2", **WAV2VEC2).train()
    model.feature_projection.eval()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    encoder = HuggingFaceEncoder(model, "audio")
    assert torch.equal(torch.rand(3), wanted)
    assert encoder.training and model.encoder.training and not model.feature_projection.training


def test_backbone_opens_where_nothing_learns():
    with torch.inference_mode():
        encoder = HuggingFaceEncoder(tiny("Bert", vocab_size=50), "text")
        assert encoder(torch.ones(1, 3, dtype=torch.int64), torch.tensor([3])).features.isfinite().all()


def test_head_of_a_timm_model_does_not_learn():
    class Headed(torch.nn.Module):
        num_features = 6

        def __init__(self):
            super().__init__()
            self.layer, self.head = torch.nn.Conv2d(3, 6, 4, 4), torch.nn.Linear(6, 10)

        def forward_features(self, pixels):
            return self.layer(pixels)

    encoder = TimmEncoder(Headed(), size=(3, 8, 8))
    assert [name for name, weight in encoder.named_parameters() if not weight.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]


@pytest.mark.parametrize("name", ["Wav2Vec2", "SEW"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("lengths", [[0, 0], [0, 3], [24, 1, 0], [0, 2, 400]], ids=str)
def test_sound_too_short_for_a_token_has_one(name, training, lengths):
    """In training, stretches of 10 tokens are hidden."""
    options = {**WAV2VEC2, "squeeze_factor": 1} if name == "SEW" else WAV2VEC2
    encoder = HuggingFaceEncoder(tiny(name, **options), "audio").train(training)
    out = encoder(torch.randn(len(lengths), max(lengths)), torch.tensor(lengths))
    assert out.features.isfinite().all()
    assert out.lengths.tolist() == [38 if length == 400 else int(length > 0) for length in lengths]


def test_sewn_tokens_come_together_even_of_a_short_sound():
    encoder = HuggingFaceEncoder(tiny("SEW", **WAV2VEC2, squeeze_factor=2), "audio")
    out = encoder(torch.randn(2, 3), torch.tensor([3, 0]))
    assert out.features.isfinite().all() and out.lengths.tolist() == [2, 0]


def test_sound_without_a_token_is_not_changed_by_what_lies_beyond_it():
    encoder = HuggingFaceEncoder(tiny("Wav2Vec2", **WAV2VEC2), "audio")
    waves, lengths = torch.randn(1, 400), torch.tensor([3])
    alone, among = encoder(waves[:, :3], lengths), encoder(waves, lengths)
    torch.testing.assert_close(among.features[:, :1], alone.features, atol=1e-5, rtol=1e-4)


def test_batch_of_no_words_has_no_tokens():
    out = HuggingFaceEncoder(tiny("Bert", vocab_size=50), "text")(
        torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    )
    assert out.features.isfinite().all() and out.lengths.tolist() == [0, 0]


def test_frozen_backbone_stays_in_evaluation_mode_and_learns_nothing():
    encoder = HuggingFaceEncoder(tiny("Bert", vocab_size=50), "text", frozen=True).train()
    assert encoder.training and not encoder.model.training
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_module_with_the_interface_of_timm_is_an_encoder():
    class Features(torch.nn.Module):
        num_features = 6

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 6, 4, 4)

        def forward_features(self, pixels):
            return self.layer(pixels)

    out = TimmEncoder(Features())(torch.rand(2, 3, 8, 12), torch.tensor([1, 0]))
    assert out.features.shape == (2, 6, 6) and out.lengths.tolist() == [6, 0]


def test_encoder_is_built_by_name_with_its_options():
    modality = Modality("audio", sample_rate=SAMPLE_RATE)
    options = {"log_mel": {"hop": 80, "window": 200}, "augment": {"bands": 3}}
    encoder, channels = build_encoder(modality, 16, "crnn", options)
    assert (encoder.log_mel.hop, encoder.augment.bands, channels) == (80, 3, 16)
    assert build_encoder(Modality("image", size=(3, 32, 32)), 16, "vgg16")[1] == 512


def test_backbone_is_built_by_name_and_opened_again(tmp_path):
    """As a setting of `crossmodal train`: a folder that holds a model of transformers."""
    tiny("ViT", image_size=16, patch_size=8).save_pretrained(tmp_path)
    modality = Modality("image", size=(3, 16, 16))
    encoder, channels = build_encoder(modality, 48, "huggingface", {"model": str(tmp_path), "frozen": True})
    assert channels == 16 and not any(weight.requires_grad for weight in encoder.parameters())
    again, _ = build_encoder(modality, 48, "huggingface", {"model": str(tmp_path)})
    again.load_state_dict(encoder.state_dict())
    pixels, there = torch.rand(2, 3, 16, 16), torch.tensor([1, 0])
    torch.testing.assert_close(again.eval()(pixels, there), encoder.eval()(pixels, there))


TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "values", "lengths"),
    [
        ("image", torch.rand(2, 3, 16, 16), torch.tensor([1, 0])),
        ("text", torch.randint(2, 50, (2, 9)), torch.tensor([9, 4])),
    ],
    ids=["image", "text"],
)
def test_of_a_model_of_two_towers_the_one_that_reads_the_kind_is_taken(tmp_path, kind, values, lengths):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    text = {**TOWER, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 16, "patch_size": 8})
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    encoder = HuggingFaceEncoder(str(tmp_path), kind)
    out = encoder(values, lengths)
    assert out.features.shape[::2] == (2, 16) and encoder.channels == 16
    with pytest.raises(
        ValueError, match=r"must have a part audio_model to read audio, got CLIPModel of text_model, vision_model"
    ):
        HuggingFaceEncoder(str(tmp_path), "audio")


def test_pretrained_network_of_images_gets_them_as_its_settings_say(tmp_path):
    tiny("ViT", image_size=16, patch_size=8).save_pretrained(tmp_path)
    mean, deviation = [0.5, 0.25, 0.125], [0.5, 0.25, 0.5]
    settings = {"do_normalize": True, "image_mean": mean, "image_std": deviation}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    modality, options = Modality("image", size=(3, 16, 16)), {"model": str(tmp_path)}
    prepared, _ = build_encoder(modality, 48, "huggingface", {**options, "normalize": True})
    bare, _ = build_encoder(modality, 48, "huggingface", options)
    pixels, there = torch.rand(2, 3, 16, 16), torch.tensor([1, 0])
    by_hand = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
    torch.testing.assert_close(prepared.eval()(pixels, there), bare.eval()(by_hand, there))
    assert not torch.allclose(prepared(pixels, there).features[0], bare(pixels, there).features[0])
    assert prepared.state_dict().keys() == bare.state_dict().keys()  # the settings are not learnt
    with pytest.raises(ValueError, match="normalize must not be True for a model that is no name or folder"):
        HuggingFaceEncoder(tiny("ViT", image_size=16, patch_size=8), "image", normalize=True)


def test_pretrained_network_of_sound_gets_it_with_unit_variance(tmp_path):
    tiny("Wav2Vec2", **WAV2VEC2).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    options = {"model": str(tmp_path), "normalize": True}
    prepared, _ = build_encoder(Modality("audio", sample_rate=8000), 48, "huggingface", options)
    sound, lengths = 0.01 * torch.randn(3, 400) + 0.1, torch.tensor([400, 300, 0])
    sound[1, 300:] = math.nan
    values = prepared.prepare(sound, lengths)
    for row, length in enumerate(lengths[:2]):
        real = values[row, :length]
        torch.testing.assert_close(real.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(real.var(unbiased=False), torch.tensor(1.0), atol=2e-3, rtol=0)
    assert (values[1, 300:] == 0).all() and (values[2] == 0).all()
    assert prepared.eval()(sound, lengths).features.isfinite().all()


SAVED = [
    ("ViT", Modality("image", size=(3, 16, 16)), {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.25, 0.5]}),
    ("Wav2Vec2", Modality("audio", sample_rate=16000), {}),
]


@pytest.mark.parametrize(("name", "modality", "settings"), SAVED, ids=["image", "audio"])
def test_settled_options_normalise_inputs_also_where_the_settings_of_the_model_are_gone(
    tmp_path, name, modality, settings
):
    tiny(name, **(WAV2VEC2 if name == "Wav2Vec2" else {"image_size": 16, "patch_size": 8})).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_normalize": True, **settings}))
    options = {"name": "huggingface", "model": str(tmp_path)}
    settled = settled_options(modality, options)
    assert json.loads(json.dumps(settled)) == settled == settled_options(modality, settled)
    del settled["name"]
    before, _ = build_encoder(modality, 48, "huggingface", {"model": str(tmp_path), "normalize": True})
    path.unlink()
    after, _ = build_encoder(modality, 48, "huggingface", settled)
    batch = (torch.rand(2, 3, 16, 16), torch.tensor([1, 0]))
    if modality.kind == "audio":
        batch = torch.rand(2, 400), torch.tensor([400, 300])
    torch.testing.assert_close(after.eval()(*batch), before.eval()(*batch), rtol=0, atol=0)
    assert settled_options(modality, options)["normalize"] is False


def test_settled_options_ask_no_file_where_nothing_is_to_be_normalised():
    modality = Modality("image", size=(3, 16, 16))
    for options in ({"name": "huggingface", "model": "no/such", "normalize": False}, {"name": "vit", "patch": 4}):
        assert settled_options(modality, options) == options


def test_settled_options_hold_what_timm_says_and_leave_random_numbers_alone(monkeypatch):
    def create_model(name, pretrained):
        torch.rand(3)
        assert name == "small" and not pretrained
        return types.SimpleNamespace(pretrained_cfg={"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    state = torch.get_rng_state()
    settled = settled_options(Modality("image", size=(3, 16, 16)), {"name": "timm", "model": "small"})
    assert settled["normalize"] == {"mean": [0.5, 0.5, 0.5], "deviation": [0.25, 0.25, 0.25]}
    assert torch.equal(torch.get_rng_state(), state)


BYTES = {
    "bytes to [0, 1]": ({"rescale_factor": 1 / 255}, lambda pixels: (pixels / 255 - 0.5) / 0.25),
    "bytes to [0, 2]": ({"rescale_factor": 1 / 127.5}, lambda pixels: (pixels / 127.5 - 0.5) / 0.25),
    "bytes to [-1, 1]": (
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        lambda pixels: (pixels / 127.5 - 1 - 0.5) / 0.25,
    ),
    "told [0, 1]": ({"do_rescale": False, "rescale_factor": 1 / 127.5}, lambda pixels: (pixels / 255 - 0.5) / 0.25),
    "divided twice": ({"include_top": True}, lambda pixels: (pixels / 255 - 0.5) / 0.25 / 0.25),
    "one for all": ({"image_mean": 0.5, "image_std": 0.25}, lambda pixels: (pixels / 255 - 0.5) / 0.25),
    "only scaled": ({"do_normalize": False, "rescale_factor": 1 / 127.5}, lambda pixels: pixels / 127.5),
}


@pytest.mark.parametrize("case", BYTES)
def test_images_are_scaled_as_an_image_processor_scales_their_bytes(tmp_path, case):
    pytest.importorskip("transformers", reason="needs the extra backbones")
    more, by_hand = BYTES[case]
    settings = {"do_normalize": True, "do_rescale": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **more}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    pixels = torch.randint(0, 256, (2, 3, 4, 4)).float()
    prepare = preparation_of(saved_normalization(str(tmp_path), "image"), "image")
    torch.testing.assert_close(prepare(pixels / 255, torch.tensor([1, 1])), by_hand(pixels), atol=1e-5, rtol=1e-5)


def test_of_a_processor_of_several_modalities_the_part_for_the_kind_is_read(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra backbones")
    image = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor": image, "feature_extractor": {"do_normalize": False}}))
    assert saved_normalization(str(tmp_path), "audio") is False
    assert saved_normalization(str(tmp_path), "image") == {"mean": [0.5] * 3, "deviation": [0.5] * 3}
    path.write_text(json.dumps({"image_processor": image}))
    assert saved_normalization(str(tmp_path), "audio") is False
    path.write_text(json.dumps({"feature_extractor": {"do_normalize": True}}))
    assert saved_normalization(str(tmp_path), "audio") == "unit_variance"
    assert saved_normalization(str(tmp_path), "image") is False


def test_hub_that_does_not_answer_is_no_model_without_settings(monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra backbones")
    import huggingface_hub

    def unreachable(*arguments, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", unreachable)
    with pytest.raises(OSError, match=r"inputs of some/model .* cannot be looked up in its preprocessor_config.json"):
        saved_normalization("some/model", "audio")
    assert saved_normalization(str(tmp_path), "audio") is False  # a folder without settings says nothing


GROUPED = {**WAV2VEC2, "feat_extract_norm": "group"}


ALONE = {name: (name, GROUPED) for name in ("Wav2Vec2", "Hubert", "SEW", "WavLM", "UniSpeech", "UniSpeechSat")}
ALONE["one token of SEW"] = "SEW", {**GROUPED, "squeeze_factor": 1}
ALONE["layer norm of SEW"] = "SEW", WAV2VEC2
ALONE["stable"] = "Wav2Vec2", {**GROUPED, "do_stable_layer_norm": True}
ALONE["convolutions over tokens"] = "Wav2Vec2Conformer", {**WAV2VEC2, "conv_depthwise_kernel_size": 5}
ALONE["convolutions for positions"] = "Data2VecAudio", {**WAV2VEC2, "num_conv_pos_embeddings": 2}
ALONE["adapter"] = "Wav2Vec2", {**WAV2VEC2, "add_adapter": True, "output_hidden_size": 16}


@pytest.mark.parametrize("case", ALONE)
def test_features_of_a_sound_do_not_depend_on_the_others_of_its_batch(case):
    """Also where the network normalises over time, as Wav2Vec2's does by default, or makes tokens of several."""
    name, options = ALONE[case]
    encoder = HuggingFaceEncoder(tiny(name, **options), "audio")
    sound, lengths = torch.randn(5, 400), torch.tensor([250, 400, 0, 250, 3])
    out = encoder(sound, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(sound[row : row + 1, :length], lengths[row : row + 1])
        real = int(out.lengths[row])
        assert real == int(alone.lengths)
        torch.testing.assert_close(out.features[row, :real], alone.features[0, :real], atol=1e-5, rtol=1e-4)
    assert "forward" not in encoder.model.feature_extractor.__dict__


def test_sounds_of_several_lengths_learn_as_each_alone():
    encoder = HuggingFaceEncoder(tiny("Wav2Vec2", **GROUPED), "audio")
    sound, lengths = torch.randn(3, 400), torch.tensor([400, 200, 200])
    weight = encoder.model.feature_extractor.conv_layers[0].conv.weight
    wanted = torch.randn(16)  # of normalised features, the squares alone always have the same sum

    def slope(rows):
        out = encoder(sound[rows, : max(lengths[rows])], lengths[rows])
        loss = sum((row[:real] @ wanted).sum() for row, real in zip(out.features, out.lengths.tolist(), strict=True))
        return torch.autograd.grad(loss, weight)[0]

    torch.testing.assert_close(slope([0, 1, 2]), slope([0]) + slope([1]) + slope([2]), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("more", [{}, {"add_adapter": True, "output_hidden_size": 16}], ids=["plain", "adapter"])
@pytest.mark.parametrize("lengths", [[3, 0], [24, 1, 0], [0, 0]], ids=str)
def test_sounds_shorter_than_what_training_hides_are_read_where_the_norm_is_over_time(lengths, more):
    encoder = HuggingFaceEncoder(tiny("Wav2Vec2", **GROUPED, **more), "audio").train()
    out = encoder(torch.randn(len(lengths), max(lengths)), torch.tensor(lengths))
    assert out.features.isfinite().all() and out.lengths.tolist() == [int(length > 0) for length in lengths]


@pytest.mark.parametrize("name", ["EfficientNet", "MobileNetV2"])
def test_model_whose_configuration_names_no_hidden_size_is_tried_out(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    small = {"depth_coefficient": 0.1, "width_coefficient": 0.1, "hidden_dim": 128} if name == "EfficientNet" else {}
    config = getattr(transformers, f"{name}Config")(image_size=32, **small)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path)
    encoder, channels = build_encoder(Modality("image", size=(3, 32, 32)), 48, "huggingface", {"model": str(tmp_path)})
    assert encoder.eval()(torch.rand(2, 3, 32, 32), torch.tensor([1, 0])).features.shape[2] == channels


@pytest.mark.parametrize(("name", "longest"), [("Bert", 12), ("Roberta", 10)])
def test_text_beyond_the_positions_of_a_model_is_cut_off(name, longest):
    encoder = HuggingFaceEncoder(tiny(name, vocab_size=50, max_position_embeddings=12), "text")
    values = torch.randint(2, 50, (2, 30))
    out = encoder(values, torch.tensor([30, 5]))
    assert out.lengths.tolist() == [longest, 5] and out.features.shape == (2, longest, 16)
    torch.testing.assert_close(out.features, encoder(values[:, :longest], torch.tensor([longest, 5])).features)


def test_image_of_another_size_than_a_backbone_is_for_is_a_mistake_in_the_settings(tmp_path):
    tiny("ViT", image_size=16, patch_size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"16"):
        build_encoder(Modality("image", size=(3, 64, 64)), 48, "huggingface", {"model": str(tmp_path), "frozen": True})


def test_feature_map_with_channels_last_becomes_tokens_too():
    class Features(torch.nn.Module):
        num_features, output_fmt = 6, "NHWC"
        pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

        def forward_features(self, pixels):
            return torch.cat([pixels, -pixels], 1).permute(0, 2, 3, 1)

    pixels, there = torch.rand(2, 3, 4, 5), torch.tensor([1, 0])
    out = TimmEncoder(Features(), normalize=True)(pixels, there)
    want = torch.cat([2 * pixels - 1, 1 - 2 * pixels], 1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.features[0], want[0])
    assert out.lengths.tolist() == [20, 0]


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
