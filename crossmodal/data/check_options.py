"""What the options of a manifest may be."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from crossmodal.data.tokenizer import MODELS


class _Check(NamedTuple):
    option: str
    holds: Callable[[Any], bool]
    wanted: str


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(_whole(edge, 1) for edge in value)


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(word, str) for word in value)


def _tokens(value: Any) -> bool:
    return isinstance(value, str) and (value in MODELS or value.endswith(".json"))


def _range(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_number, value)) and value[0] <= value[1]


_CHECKS = (
    _Check("image_size", _size, "channels, height and width"),
    _Check("image_size", lambda value: value[0] in (1, 3), "1 or 3 channels, height and width"),
    _Check("sample_rate", lambda value: _whole(value, 1), "an int above 0"),
    _Check("vocabulary", lambda value: _whole(value, 2), "an int above 1: padding and unknown are among them"),
    _Check("tokens", _tokens, f"{', '.join(MODELS)} or the path of a .json"),
    _Check("stop_words", _words, "a list of words"),
    _Check("crop", lambda value: _number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    _Check("flip", _flag, "true or false"),
    _Check("erase", lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    _Check("gain_db", lambda value: _number(value) and value >= 0, "a number of at least 0"),
    _Check("snr_db", lambda value: value is None or _range(value), "two numbers, the lower one first, or null"),
    _Check("drop_tokens", lambda value: _number(value) and 0 <= value < 1, "a number from 0 and below 1"),
    _Check("strict", _flag, "true or false"),
    _Check("verify", _flag, "true or false"),
    _Check("shards", lambda value: value is None or (isinstance(value, str) and value != ""), "a pattern or null"),
)


def check_options(values: Mapping[str, Any]) -> None:
    """Refuse what an option cannot be.

    Args:
        values: by name, with tuples for lists.

    Raises:
        ValueError: for the first one.
    """
    for option, holds, wanted in _CHECKS:
        value = values.get(option)
        if option in values and not holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"options: {option} must be {wanted}, got {shown!r}")
