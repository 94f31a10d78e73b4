"""The site: its pages build without a warning, its figures are those of the results files, its names exist."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crossmodal
from crossmodal import blocks, data, encoders, models, train

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def test_performance_page_shows_the_figures_of_the_results_files():
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location("update_pages", DOCS / "update_pages.py")
        pages = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pages)
    finally:
        sys.path.remove(str(DOCS))
    assert (DOCS / "performance.md").read_text() == pages.page(), "run python docs/update_pages.py"


API = (DOCS / "api.md").read_text()
NAMES = re.findall(r"^::: crossmodal\.([\w.]+)$", API, re.MULTILINE)
# They have no docstring; the page's text says what they are.
CONSTANTS = {"encoders.ENCODERS", "models.FUSIONS", "models.Implementation", "data.MODALITIES", "data.NUM_CLASSES"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_the_api_page_exists_and_has_a_docstring(name):
    found = crossmodal
    for part in name.split("."):
        found = getattr(found, part)
    assert found.__doc__


def test_every_public_name_is_on_the_api_page():
    modules = {"integrations", "masks", "nn", "reference"}  # pages of their own names
    assert set(crossmodal.__all__) - modules - {"SdpaHandle", "build_info"} <= set(NAMES)
    assert {f"nn.{name}" for name in crossmodal.nn.__all__} - {"nn.CrossModalOutput"} <= set(NAMES)
    for module in (blocks, data, encoders, models, train):
        part = module.__name__.removeprefix("crossmodal.")
        assert {f"{part}.{name}" for name in module.__all__} - CONSTANTS <= set(NAMES)
    assert all(f"`crossmodal.{name}`" in API for name in CONSTANTS)


def cells(*headings):
    """The rows of the tables of docs/training.md that begin so: name in the first column, default in the second."""
    page, found = (DOCS / "training.md").read_text(), {}
    for heading in headings:
        table = page.partition(f"\n| {heading} | default | what |\n")[2].partition("\n\n")[0]
        found |= dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)` )?\| .* \|$", table, re.MULTILINE))
    return found


def as_written(value):
    """In YAML."""
    known = {None: "null", True: "true", False: "false"}
    return known[value] if value is None or isinstance(value, bool) else str(value)


def fields_of(made):
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def test_training_page_has_every_setting_with_its_default():
    written = cells("data", "model", "loss", "schedule", "machine")
    wanted = fields_of(train.TrainConfig(""))
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float):
            assert float(written[name]) == value, name
        else:
            assert written[name] == as_written(value), name


def test_training_page_has_every_option_of_a_manifest_with_its_default():
    written = cells("option")
    wanted = fields_of(data.ManifestOptions())
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        assert written[name] == as_written(list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_blocks_of_python_are_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if ">>>" not in block and "(...)" not in block:
            compile(block, page.name, "exec")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason='needs pip install "crossmodal[docs]"')
def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site" / "api" / "index.html").read_text()
    assert ":func:" not in text and "scaled dot-product" in text.lower()
