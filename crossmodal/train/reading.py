"""What the inputs of a model are read with: what weights have learnt means something for that alone."""

import inspect
from collections.abc import Mapping
from typing import Any

from crossmodal.data.reader import reader_from
from crossmodal.data.tokenizer import Tokenizer
from crossmodal.encoders.build import BACKBONES
from crossmodal.encoders.log_mel import LogMel

_FRAMES = {
    name: parameter.default
    for name, parameter in inspect.signature(LogMel).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def reading_of(description: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """How a model reads a modality, ready for JSON.

    Args:
        description: of the model; see :func:`crossmodal.train.model.describe_model`.
        modality: one of its own.
    """
    values, encoder = description["modalities"][modality], description["encoders"].get(modality, {})
    found: dict[str, Any] = {}
    if encoder.get("name") in BACKBONES:
        found["normalize"] = encoder.get("normalize", False)  # what is from before it was settled has none
    if values["kind"] == "audio":
        frames = encoder.get("log_mel") or {}
        found |= {"sample_rate": values["sample_rate"], "log_mel": {**_FRAMES, **frames}}
    reader = description["data"].get("reader")
    if values["kind"] == "text" and reader is not None:
        tokenizer = reader_from(reader).tokenizer
        if tokenizer is not None:
            found |= {"tokenizer": tokenizer.json, "stop_words": sorted(tokenizer.stop_words)}
    return found


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What one of two does otherwise than the other, as ``"8000 Hz, not 16000 Hz"``; "" where they read alike.

    Args:
        first, second: from :func:`reading_of`. What only one says is no difference: older versions say less.
    """
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if name == "tokenizer":
            if said := _other_words(Tokenizer(one), Tokenizer(other)):
                return said
        elif one != other:
            return f"{one} Hz, not {other} Hz" if name == "sample_rate" else f"{name} {one}, not {other}"
    return ""


def _other_words(one: Tokenizer, other: Tokenizer) -> str:
    # Written anew by this version of the library, whichever wrote it before.
    if one.json == other.json:
        return ""
    for number, (word, instead) in enumerate(zip(one.words, other.words, strict=False)):
        if word != instead:
            return f"{word!r} as token {number}, not {instead!r}"
    if len(one) != len(other):
        return f"{len(one)} tokens, not {len(other)}"
    return "the same tokens, of texts cut in another way"
