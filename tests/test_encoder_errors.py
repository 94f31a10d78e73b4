"""What encoders refuse, each in one line that says what would be right; and the edges of what they take."""

import copy
import json

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
    TransformerTextEncoder,
    VGG16Encoder,
    ViTEncoder,
    VoiceWarp,
    build_encoder,
)

SAMPLE_RATE = 8000
IMAGE = Modality("image", size=(3, 28, 28))
AUDIO = Modality("audio", sample_rate=SAMPLE_RATE)
TEXT = Modality("text", vocabulary=9)

SETTINGS = [
    (IMAGE, "vit", {"patch": 0}, "patch must be at least 1, got 0"),
    (IMAGE, "vit", {"patch": 5}, r"size must be a multiple of patch, got \(28, 28\) and 5"),
    (IMAGE, "vit", {"layers": -1}, "layers must be at least 0, got -1"),
    (IMAGE, "vit", {"num_heads": 0}, "num_heads must be at least 1, got 0"),
    (IMAGE, "resnet", {"widths": []}, r"widths must hold one number or more, got \[\]"),
    (IMAGE, "resnet", {"widths": [0]}, "widths must be at least 8, got 0"),
    (IMAGE, "resnet", {"widths": [8, 28]}, "widths must be divisible by width // 8, as multiples of 8 are, got 28"),
    (IMAGE, "resnet", {"widths": [8.5]}, "widths must be an int, got float"),
    (IMAGE, "resnet", {"stem": 0}, "stem must be at least 1, got 0"),
    (IMAGE, "vgg16", {}, r"both edges at least 32, got \(3, 28, 28\)"),
    (AUDIO, "crnn", {"log_mel": {"hop": 0}}, "hop must be at least 1, got 0"),
    (AUDIO, "crnn", {"log_mel": {"window": -5}}, "window must be at least 1, got -5"),
    (AUDIO, "crnn", {"log_mel": "mel"}, "the encoder crnn of audio cannot be made"),
    (AUDIO, "crnn", {"augment": {"bands": -1}}, "bands must be at least 0, got -1"),
    (AUDIO, "crnn", {"hidden": 0}, "hidden must be at least 1, got 0"),
    (AUDIO, "crnn", {"voices": {"tempo": float("nan")}}, "tract and tempo must be 0 or more, got 0.2 and nan"),
    (TEXT, "transformer", {"longest": 0}, "longest must be at least 1, got 0"),
    (TEXT, "lstm", "gru", "options of the encoder lstm of text must be names and values, got 'gru'"),
    (TEXT, ["lstm"], {}, "encoder of text must be one of lstm, .*, got"),
]


@pytest.mark.parametrize(("modality", "name", "options", "message"), SETTINGS)
def test_settings_that_cannot_be_are_named(modality, name, options, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(modality, 16, name, options)


def save(folder, name, **options):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options)).save_pretrained(folder)


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WHISPER = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
WHISPER |= {"vocab_size": 20, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}


@pytest.mark.parametrize(
    ("modality", "name", "options"),
    [(AUDIO, "Whisper", WHISPER), (TEXT, "T5", T5)],
    ids=["Whisper", "T5"],
)
def test_network_that_cannot_read_the_modality_is_refused_when_it_is_built(tmp_path, modality, name, options):
    save(tmp_path, name, **options)
    with pytest.raises(ValueError, match=f"the encoder huggingface of {modality.kind} cannot be made with"):
        build_encoder(modality, 16, "huggingface", {"model": str(tmp_path)})


def test_images_of_other_channels_than_a_backbone_is_normalised_for_are_refused_when_it_is_built(tmp_path):
    save(tmp_path, "ViT", **TINY, image_size=28, patch_size=14, num_channels=1)
    settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    options = {"model": str(tmp_path), "normalize": True}
    with pytest.raises(ValueError, match=r"the encoder huggingface of image .*: images must have 3 channels, got 1"):
        build_encoder(Modality("image", size=(1, 28, 28)), 16, "huggingface", options)


@pytest.mark.parametrize(
    ("kind", "normalize", "message"),
    [
        ("image", "unit_variance", "True or False, or mean and deviation, for image, got 'unit_variance'"),
        ("image", None, "True or False, or mean and deviation, for image, got None"),
        ("image", {"mean": [0.5]}, "True or False, or mean and deviation, for image, got"),
        ("image", {"mean": [0.5], "deviation": [0.5, 0.5]}, "a deviation other than 0 for each mean, got"),
        ("image", {"mean": [0.5], "deviation": [0.0]}, "a deviation other than 0 for each mean, got"),
        ("audio", {"mean": [0.5], "deviation": [0.5]}, "True or False or 'unit_variance' for audio, got"),
        ("text", "unit_variance", "True or False for text, got 'unit_variance'"),
    ],
)
def test_ways_to_normalise_that_a_kind_does_not_have_are_named(kind, normalize, message):
    with pytest.raises(ValueError, match=f"normalize must (be|have) {message}"):
        HuggingFaceEncoder(torch.nn.Linear(2, 2), kind, normalize=normalize)


def test_model_of_images_of_a_size_that_nothing_tells_wants_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra backbones")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = transformers.ResNetModel(config)
    with pytest.raises(ValueError, match="size must be given: ResNetModel says neither image_size nor hidden_size"):
        HuggingFaceEncoder(model, "image")
    assert HuggingFaceEncoder(model, "image", size=(3, 32, 32)).channels == 8


@pytest.mark.parametrize("channels", [-2, 0])
@pytest.mark.parametrize(
    ("modality", "name"),
    [
        (IMAGE, "resnet"),
        (IMAGE, "cnn"),
        (IMAGE, "vit"),
        (AUDIO, "crnn"),
        (AUDIO, "gru"),
        (TEXT, "lstm"),
        (TEXT, "transformer"),
    ],
)
def test_features_have_at_least_one_channel(modality, name, channels):
    with pytest.raises(ValueError, match=f"channels must be at least 1, got {channels}"):
        build_encoder(modality, channels, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageEncoder((28, 28), channels=12), "channels must be a multiple of 8, got 12"),
        (lambda: ImageEncoder((0, 28)), "size must be at least 1, got 0"),
        (lambda: ResNetEncoder((28, 28), widths=(4,)), "widths must be at least 8, got 4"),
        (lambda: TextEncoder(50, kind="rnn"), "kind must be one of lstm, gru, got 'rnn'"),
        (lambda: TextEncoder(0), "vocabulary must be at least 1, got 0"),
        (lambda: TextEncoder(9, 7), "channels must be even, got 7"),
        (lambda: CrnnEncoder(SAMPLE_RATE, 7), "channels must be even, got 7"),
        (lambda: LogMel(0), "sample_rate must be above 0, got 0"),
        (lambda: LogMel(SAMPLE_RATE, hop=0), "hop must be at least 1, got 0"),
        (
            lambda: AudioEncoder(SAMPLE_RATE, log_mel=LogMel(16000)),
            "log_mel must have the sample_rate 8000, got .*16000",
        ),
        (
            lambda: CrnnEncoder(SAMPLE_RATE, log_mel=LogMel(16000)),
            "log_mel must have the sample_rate 8000, got .*16000",
        ),
        (lambda: SpecAugment(stripes=-1), "stripes must be at least 0, got -1"),
        (lambda: HuggingFaceEncoder(torch.nn.Linear(2, 2), "video"), "kind must be one of image, text, audio, got"),
    ],
)
def test_arguments_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_widths_need_not_be_multiples_of_eight():
    """What is documented: any width of 8 or more that its groups divide."""
    for width in (8, 10, 15, 20, 24):
        ResNetEncoder((8, 8), widths=(width,))
    for hidden in (1, 7, 12):
        assert (
            CrnnEncoder(SAMPLE_RATE, 6, hidden=hidden)(torch.randn(1, 800), torch.tensor([800])).features.shape[2] == 6
        )


@pytest.mark.parametrize("shape", [(3, 14, 14), (1, 21, 14), (1, 14, 28)])
def test_vit_refuses_images_of_another_size(shape):
    encoder = ViTEncoder((14, 21), 1)
    with pytest.raises(ValueError, match=r"pixels must be \(B, 1, 14, 21\), got \(2, "):
        encoder(torch.rand(2, *shape), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("size", [(15, 15), (7, 8), (1, 3)])
def test_small_cnn_reads_images_of_odd_size(size):
    encoder = ImageEncoder(size, 3)
    out = encoder(torch.rand(2, 3, *size), torch.tensor([1, 0]))
    rows, columns = encoder.grid
    assert (rows, columns) == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    assert out.features.shape == (2, rows * columns, 48) and out.lengths.tolist() == [rows * columns, 0]


@pytest.mark.parametrize("shape", [(2, 3, 31, 40), (2, 2, 32, 32), (3, 32, 32)])
def test_vgg16_names_images_that_it_cannot_read(shape):
    with pytest.raises(ValueError, match="both edges at least 32"):
        VGG16Encoder()(torch.rand(shape), torch.ones(shape[0], dtype=torch.int64))


SEQUENCES = {
    "audio": lambda: (AudioEncoder(SAMPLE_RATE), torch.randn(2, 3000)),
    "crnn": lambda: (
        CrnnEncoder(SAMPLE_RATE, 16, hidden=16, voices=VoiceWarp(LogMel(SAMPLE_RATE))),
        torch.randn(2, 3000),
    ),
    "text": lambda: (TextEncoder(9), torch.ones(2, 7, dtype=torch.int64)),
    "summary": lambda: (TextEncoder(9, summary=True), torch.ones(2, 7, dtype=torch.int64)),
    "transformer": lambda: (TransformerTextEncoder(9, layers=0), torch.ones(2, 7, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_lengths_lie_within_the_input(name):
    encoder, values = SEQUENCES[name]()
    size = values.shape[1]
    for length in (size + 2, -1):
        with pytest.raises(ValueError, match=rf"lengths must lie in \[0, {size}\], got {length} at batch index 1"):
            encoder(values, torch.tensor([size, length]))
    with pytest.raises(TypeError, match=r"lengths must be int32 or int64, got torch\.float32"):
        encoder(values, torch.ones(2))
    with pytest.raises(ValueError, match=r"lengths must have shape \(batch,\) = \(2,\), got \(3,\)"):
        encoder(values, torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("make", [ResNetEncoder, ImageEncoder, ViTEncoder], ids=["resnet", "cnn", "vit"])
def test_images_are_there_or_not(make):
    encoder, pixels = make((28, 28)).eval(), torch.rand(2, 1, 28, 28)
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 1\], got -1 at batch index 1"):
        encoder(pixels, torch.tensor([1, -1]))
    one, more = (encoder(pixels, torch.tensor([count, 0])) for count in (1, 5))
    assert torch.equal(one.features, more.features) and torch.equal(one.lengths, more.lengths)


@pytest.mark.parametrize("summary", [False, True])
@pytest.mark.parametrize("samples", [100, 3000])
def test_batch_of_no_sound_has_no_features(samples, summary):
    nothing = torch.zeros(0, dtype=torch.int64)
    augment, voices = SpecAugment(), VoiceWarp(LogMel(SAMPLE_RATE))
    crnn = CrnnEncoder(SAMPLE_RATE, 16, hidden=16, augment=augment, voices=voices, summary=summary)
    for encoder in (AudioEncoder(SAMPLE_RATE, 16), crnn):
        full = encoder(torch.zeros(1, samples), torch.tensor([samples]))
        out = encoder(torch.zeros(0, samples), nothing)
        assert out.features.shape[0] == out.lengths.shape[0] == 0 and out.features.shape[2] == full.features.shape[2]
        out.features.sum().backward()
    frames = LogMel(SAMPLE_RATE)(torch.zeros(1, samples), torch.tensor([samples]))[0].shape[1]
    assert LogMel(SAMPLE_RATE)(torch.zeros(0, samples), nothing)[0].shape == (0, frames, 40)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["audio", "crnn"])
def test_sound_in_half_precision_goes_through_the_front_end_in_float32(name, dtype, atol):
    torch.manual_seed(0)
    encoder, values = SEQUENCES[name]()
    encoder.eval()
    lengths = torch.tensor([3000, 1000])
    half = copy.deepcopy(encoder).to(dtype)
    assert torch.equal(half.log_mel.filters, encoder.log_mel.filters) and half.log_mel.filters.dtype == torch.float32
    assert torch.equal(half.log_mel(values, lengths)[0], encoder.log_mel(values, lengths)[0])
    want, got = encoder(values, lengths), half(values.to(dtype), lengths)
    assert got.features.dtype == dtype and torch.equal(got.lengths, want.lengths)
    torch.testing.assert_close(got.features.float(), want.features, rtol=0, atol=atol)
    again = half.float()
    assert torch.equal(again.log_mel(values, lengths)[0], encoder.log_mel(values, lengths)[0])


@pytest.mark.parametrize("number", [9, -1])
@pytest.mark.parametrize("make", [TextEncoder, TransformerTextEncoder])
def test_words_have_numbers_within_the_vocabulary(make, number):
    encoder, words = make(9, 8), torch.tensor([[8, 1, number]])
    with pytest.raises(ValueError, match=rf"words must lie in \[0, 9\), the vocabulary, got {number}"):
        encoder(words, torch.tensor([3]))
    assert encoder(words, torch.tensor([2])).features.isfinite().all()  # padding is not looked at
