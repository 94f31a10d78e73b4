"""Bugs that someone could write: each a change of one place in the kernels' source, all of which tests must notice.

All of them are compiled into one library and put in force one at a time (`mutants.py`), so that a bug costs no build.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """In `file` of csrc/cuda, `wrong` in the place of `right`.

    An expression by an expression, or statements, which end in a semicolon, by statements. Where `right` alone is not
    clear, `within` is a longer text around it. `by` is the problem that shows it, which is tried first.
    """

    name: str
    file: str
    right: str
    wrong: str
    within: str = ""
    by: str = ""
