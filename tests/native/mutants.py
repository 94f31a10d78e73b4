"""Kernels' sources that hold every bug at once: `emulator::bug` says which one is in force, if any.

A place `right` becomes `(emulator::bug == 7 ? (wrong) : (right))`, or an `if` around statements. Mutation testing calls
it mutant schemata (Untch, Offutt, Harrold, 1993): one build for all bugs, where each took one of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.native.bugs.bug import Bug

Span = tuple[int, int]


def with_bugs(folder: Path, bugs: Sequence[Bug]) -> dict[str, str]:
    """The files of a csrc/cuda that have bugs, by their names; a bug's number is its place in the list."""
    numbers: defaultdict[str, dict[int, Bug]] = defaultdict(dict)
    for number, bug in enumerate(bugs):
        numbers[bug.file][number] = bug
    return {file: _file_with_bugs((folder / file).read_text(), found) for file, found in numbers.items()}


def _file_with_bugs(text: str, bugs: Mapping[int, Bug]) -> str:
    places: defaultdict[Span, dict[int, Bug]] = defaultdict(dict)
    for number, bug in bugs.items():
        places[_place_of(bug, text)][number] = bug
    last = len(text)
    for begin, end in sorted(places, reverse=True):
        found = places[begin, end]
        assert end <= last, f"places of bugs overlap: {', '.join(bug.name for bug in found.values())}"
        text = text[:begin] + _any_of(found, text[begin:end]) + text[end:]
        last = begin
    return text


def _place_of(bug: Bug, text: str) -> Span:
    begin, end = _find(bug.within or bug.right, text, bug)
    first, last = _find(bug.right, text[begin:end], bug)
    return begin + first, begin + last


def _find(wanted: str, text: str, bug: Bug) -> Span:
    # However the formatter breaks its lines.
    found = list(re.finditer(r"\s+".join(map(re.escape, wanted.split())), text))
    assert len(found) == 1, f"{bug.name}: {bug.file} has {len(found)} places that read {wanted!r}"
    return found[0].span()


def _any_of(bugs: Mapping[int, Bug], right: str) -> str:
    """What stands in one place: each bug's `wrong` if that bug is in force, else `right`."""
    text = right
    is_statement = right.endswith(";")
    for number, bug in bugs.items():
        condition = f"::emulator::bug == {number}"
        if is_statement:
            text = f"{{ if ({condition}) {{ {bug.wrong} }} else {{ {text} }} }}"
        else:
            text = f"({condition} ? ({bug.wrong}) : ({text}))"
    return text
