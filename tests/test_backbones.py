"""Networks of other libraries as encoders: built by name, inputs as in their training, no answer by the padding."""

import json
import math
import sys
import types
from typing import ClassVar

import pytest
import torch

from crossmodal.data.sample import Modality
from crossmodal.encoders import (
    HuggingFaceEncoder,
    TimmEncoder,
    build_encoder,
)
from crossmodal.encoders.build import settled_options
from crossmodal.encoders.preparation import preparation_of, saved_normalization


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


class Features(torch.nn.Module):
    """The interface of timm's models."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 6, 4, 4)

    def forward_features(self, pixels):
        return self.layer(pixels)


def test_head_of_a_timm_model_does_not_learn():
    class Headed(Features):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(6, 10)

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
    out = TimmEncoder(Features())(torch.rand(2, 3, 8, 12), torch.tensor([1, 0]))
    assert out.features.shape == (2, 6, 6) and out.lengths.tolist() == [6, 0]


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
    class ChannelsLast(torch.nn.Module):
        num_features, output_fmt = 6, "NHWC"
        pretrained_cfg: ClassVar = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

        def forward_features(self, pixels):
            return torch.cat([pixels, -pixels], 1).permute(0, 2, 3, 1)

    pixels, there = torch.rand(2, 3, 4, 5), torch.tensor([1, 0])
    out = TimmEncoder(ChannelsLast(), normalize=True)(pixels, there)
    want = torch.cat([2 * pixels - 1, 1 - 2 * pixels], 1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.features[0], want[0])
    assert out.lengths.tolist() == [20, 0]


def test_network_of_spectrograms_is_refused_by_name(tmp_path):
    tiny("AST", max_length=32, num_mel_bins=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the encoder huggingface of audio cannot be made with"):
        build_encoder(Modality("audio", sample_rate=16000), 48, "huggingface", {"model": str(tmp_path)})


class Strided(torch.nn.Module):
    """A network of sound that says nothing of how many tokens it makes of it, nor of what."""

    config = types.SimpleNamespace(model_type="strided", hidden_size=4)

    def __init__(self):
        super().__init__()
        self.convolve = torch.nn.Conv1d(1, 4, 10, stride=4)

    def forward(self, input_values, attention_mask):
        return types.SimpleNamespace(last_hidden_state=self.convolve(input_values.unsqueeze(1)).transpose(1, 2))


def test_sound_has_the_tokens_that_it_has_alone_beside_one_that_is_missing():
    encoder = HuggingFaceEncoder(Strided(), "audio")
    sound = torch.randn(2, 1000)
    alone, beside = encoder(sound[:1, :500], torch.tensor([500])), encoder(sound, torch.tensor([500, 0]))
    assert beside.lengths.tolist() == [int(alone.lengths), 0]
    torch.testing.assert_close(beside.features[:1, : int(alone.lengths)], alone.features[:, : int(alone.lengths)])


def test_model_that_is_elsewhere_already_is_tried_out_there():
    normalize = {"mean": [0.5] * 3, "deviation": [0.5] * 3}
    encoder = TimmEncoder(Features().to("meta"), size=(3, 8, 8), normalize=normalize)
    assert encoder.prepare.mean.is_meta
