"""docs/contract.md: every promise names a test that exists, and every public function appears."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

import crossmodal

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "contract.md").read_text()
NOT_YET = "not tested yet: "
SECTIONS = [
    "Layout (CPU)",
    "Functions (CPU)",
    "Arguments (CPU)",
    "Numbers (CPU)",
    "Bad input (CPU)",
    "Composability (CPU)",
    "Kernels of a GPU (CUDA)",
    "Traps (CPU)",
    "Modules (CPU)",
    "Integrations (CPU)",
]


def rows() -> list[tuple[str, str]]:
    """(promise, tests) of every table, without headings."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line[:1] == "|"]
    assert all(len(cells) == 2 for cells in found if cells[0] != "---|---"), "a row has two cells"
    return [(row[0], row[1]) for row in found if row[0] not in ("promise", "---|---")]


@cache
def names_in(file: str) -> set[str]:
    """Names of the tests in a file, by its text: nothing is imported."""
    body = ast.parse((ROOT / file).read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_named_test_exists(file):
    assert (ROOT / file).exists()
    assert {name for there, name in NAMED if there == file} <= names_in(file)


def test_every_promise_names_a_test_or_says_that_there_is_none():
    one = r"`tests/[\w/]+\.py::test_\w+`"
    for promise, tests in rows():
        assert re.fullmatch(f"{one}(, {one})*|{NOT_YET}.+", tests), promise


def test_every_promise_is_made_once():
    promises = [promise for promise, _ in rows()]
    assert len(promises) == len(set(promises))


def test_every_section_is_there_and_says_for_which_device():
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", crossmodal.__all__)
def test_every_public_function_appears(name):
    value = getattr(crossmodal, name)
    word = f"`{name}" if not inspect.ismodule(value) else name
    assert word in PAGE
