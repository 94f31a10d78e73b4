"""What the members of a tar file that belong to one sample stand for."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from crossmodal.data.table import as_text, half_a_character

# What webdataset calls members; write_shards writes a JSON that names them.
_ENDS = {"image": ("png", "jpg", "jpeg"), "audio": ("wav", "flac", "ogg", "mp3"), "text": ("txt",), "label": ("cls",)}


class Cell(NamedTuple):
    """An input of a sample.

    Attributes:
        value: a text, or the name of a member.
        content: of that member.
    """

    value: str
    content: bytes | None = None


def read_members(raw: Mapping[str, Any]) -> tuple[dict[str, Cell], str]:
    """The inputs of a sample by column, and its label.

    Args:
        raw: contents by the ends of names, in lower case, as webdataset gives them.

    Raises:
        ValueError: when a member is missing or unreadable, or the label is; the message follows the sample's name.
    """
    written = _written(raw)
    for column, ends in _ENDS.items():
        end = next((end for end in ends if end in raw), None)
        if end is not None and column not in written:
            written[column] = end if column in ("image", "audio") else _decoded(raw, end)
    label = written.pop("label", "").strip()
    if not label:
        raise ValueError("has no label: neither a cls nor a json with one")
    cells = {
        column: Cell(value, _content(raw, value) if column != "text" else None) for column, value in written.items()
    }
    if not cells:
        known = ", ".join(end for column in ("image", "audio", "text") for end in _ENDS[column])
        raise ValueError(f"has nothing to learn from: none of {known}, nor a json that names a member")
    return cells, label


def _written(raw: Mapping[str, Any]) -> dict[str, str]:
    """What the JSON of a sample says, if there is one."""
    try:
        values = json.loads(raw.get("json", b"{}"))
    except ValueError as error:
        raise ValueError(f"has a json that is none: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"has a json that must be an object, got {type(values).__name__}")
    texts = {column: as_text(values[column]) for column in _ENDS if column in values}
    if problem := half_a_character(texts):
        raise ValueError(problem)
    return {column: text for column, text in texts.items() if text.strip()}


def _content(raw: Mapping[str, Any], member: str) -> bytes:
    # webdataset lowers the ends of names.
    if member.lower() not in raw:
        raise ValueError(f"holds no {member}")
    content: bytes = raw[member.lower()]
    return content


def _decoded(raw: Mapping[str, Any], member: str) -> str:
    try:
        text: str = raw[member].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"has a {member} that is no UTF-8: {error}") from error
    return text
