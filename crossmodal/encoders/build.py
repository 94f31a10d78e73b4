"""Encoders by name, for configurations and checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from crossmodal._extras import require
from crossmodal.data.sample import Modality
from crossmodal.encoders.audio import AudioEncoder, CrnnEncoder
from crossmodal.encoders.backbone import HuggingFaceEncoder, TimmEncoder
from crossmodal.encoders.image import ImageEncoder
from crossmodal.encoders.log_mel import LogMel
from crossmodal.encoders.preparation import Normalization, saved_normalization, timm_normalization
from crossmodal.encoders.resnet import ResNetEncoder
from crossmodal.encoders.spec_augment import SpecAugment
from crossmodal.encoders.text import TextEncoder, TransformerTextEncoder
from crossmodal.encoders.vgg16 import VGG16Encoder, check_image
from crossmodal.encoders.vit import ViTEncoder, usual_patch
from crossmodal.encoders.voice_warp import VoiceWarp

Options = Mapping[str, Any]
# What a library raises for arguments that it does not have, and a network for an input that it was not made for.
_MISTAKES = (TypeError, AttributeError, AssertionError, RuntimeError, ValueError, LookupError)


def _image(make: Callable[..., nn.Module]) -> Callable[[Modality, int, Options], nn.Module]:
    def build(modality: Modality, channels: int, options: Options) -> nn.Module:
        assert modality.size is not None
        return make(modality.size[1:], modality.size[0], channels=channels, **options)

    return build


def _vgg16(modality: Modality, channels: int, options: Options) -> nn.Module:
    assert modality.size is not None
    check_image(modality.size)
    return VGG16Encoder(modality.size[1:], **options)


def _huggingface(modality: Modality, channels: int, options: Options) -> nn.Module:
    return HuggingFaceEncoder(kind=modality.kind, **{"size": modality.size, **options})


def _timm(modality: Modality, channels: int, options: Options) -> nn.Module:
    return TimmEncoder(**{"size": modality.size, **options})


def _text(make: Callable[..., nn.Module], **fixed: Any) -> Callable[[Modality, int, Options], nn.Module]:
    def build(modality: Modality, channels: int, options: Options) -> nn.Module:
        return make(modality.vocabulary, channels, **fixed, **options)

    return build


def _audio(make: Callable[..., nn.Module]) -> Callable[[Modality, int, Options], nn.Module]:
    def build(modality: Modality, channels: int, options: Options) -> nn.Module:
        rest = dict(options)
        assert modality.sample_rate is not None
        log_mel = LogMel(modality.sample_rate, **rest.pop("log_mel", {}))
        if "augment" in rest:
            rest["augment"] = SpecAugment(**rest["augment"])
        if "voices" in rest:
            rest["voices"] = VoiceWarp(log_mel, **rest["voices"])
        return make(modality.sample_rate, channels, log_mel=log_mel, **rest)

    return build


BACKBONES = ("huggingface", "timm")
# By kind of input; the first of each kind is the one that is taken where none is named.
ENCODERS: dict[str, dict[str, Callable[[Modality, int, Options], nn.Module]]] = {
    "image": {
        "resnet": _image(ResNetEncoder),
        "cnn": _image(ImageEncoder),
        "vit": _image(ViTEncoder),
        "vgg16": _vgg16,
        "huggingface": _huggingface,
        "timm": _timm,
    },
    "audio": {"crnn": _audio(CrnnEncoder), "gru": _audio(AudioEncoder), "huggingface": _huggingface},
    "text": {
        "lstm": _text(TextEncoder),
        "gru": _text(TextEncoder, kind="gru"),
        "transformer": _text(TransformerTextEncoder),
        "huggingface": _huggingface,
    },
}


def build_encoder(
    modality: Modality, channels: int, name: str | None = None, options: Options | None = None
) -> tuple[nn.Module, int]:
    """An encoder of fresh weights, and how many channels its features have.

    Args:
        modality: what it reads.
        channels: wanted; an encoder whose channels are fixed keeps its own.
        name: of :data:`ENCODERS`; None takes the first of its kind.
        options: further arguments of the encoder's class; for audio, ``log_mel``, ``augment`` and ``voices`` are those
            of :class:`LogMel`, :class:`SpecAugment` and :class:`VoiceWarp`; for backbones, ``model`` is a name or a
            folder, whose files have to be there whenever a run is opened.

    Raises:
        MissingExtraError: when the library of a backbone is not installed.
        ValueError: for a name that is none of the modality's kind, and for options that the encoder does not have, or
            of values that they cannot have.
    """
    known = ENCODERS[modality.kind]
    name = next(iter(known)) if name is None else name
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"encoder of {modality.kind} must be one of {', '.join(known)}, got {name!r}")
    if not isinstance(options, Mapping | None):
        raise ValueError(f"options of the encoder {name} of {modality.kind} must be names and values, got {options!r}")
    with _named(modality, name, options or {}):
        encoder = known[name](modality, channels, options or {})
    return encoder, int(getattr(encoder, "channels", channels))


def settled_options(modality: Modality, options: Options) -> dict[str, Any]:
    """Options that say themselves what else goes by the files of a backbone's model, that is how inputs are normalised,
    or by the size of images, that is the patch of a ``vit``.

    An encoder that is built with them answers as it did, whatever has become of these files.

    Args:
        modality: what the encoder reads.
        options: as for :func:`build_encoder`, with ``name`` among them. Without ``normalize``, a backbone's inputs are
            normalised as its files say.

    Raises:
        MissingExtraError: when the library of a backbone is not installed.
        OSError: when it cannot be told what is saved with a model.
        ValueError: for a model that its library does not have, or whose settings cannot be read, and for images that no
            usual patch fills.
    """
    name, model = options.get("name"), options.get("model")
    if name == "vit" and options.get("patch") is None and modality.size is not None:
        with _named(modality, name, options):
            return {**options, "patch": usual_patch(modality.size[1:])}
    asked = options.get("normalize", True) is True
    if name not in BACKBONES or not isinstance(model, str) or not asked:
        return dict(options)
    with _named(modality, name, options):
        normalize = saved_normalization(model, modality.kind) if name == "huggingface" else _of_timm(model)
    return {**options, "normalize": normalize}


def _of_timm(model: str) -> Normalization:
    library = require("timm", distribution="timm", extra="backbones")
    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and thrown away
        network = library.create_model(model, pretrained=False)
    return timm_normalization(getattr(network, "pretrained_cfg", {}))


@contextmanager
def _named(modality: Modality, name: str, options: Options) -> Iterator[None]:
    """Mistakes say in which encoder they are."""
    try:
        yield
    except _MISTAKES as error:
        size = f" for images of {list(modality.size)}" if modality.size else ""
        raise ValueError(
            f"the encoder {name} of {modality.kind} cannot be made with {options}{size}: {error}"
        ) from error
