"""README's figures are those of the results file beside its pictures; its code runs."""

import json
import re
import runpy
from pathlib import Path

import pytest

from crossmodal.bench.results import read
from crossmodal.learning.results import read_results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
UPDATE = runpy.run_path(str(ROOT / "docs" / "update_readme.py"))


def test_demo_section_is_what_the_results_file_says():
    metrics = json.loads((ROOT / "docs" / "demo" / "metrics.json").read_text())
    assert UPDATE["demo_section"](metrics) in README


def test_speed_section_is_what_the_newest_results_file_says():
    file = UPDATE["newest_results"]()
    section = UPDATE["speed_section"](read(file), str(file.relative_to(ROOT))) if file else ""
    _, _, rest = README.partition(UPDATE["SPEED"])
    assert rest.partition(UPDATE["END"])[0].strip() == section


def test_cuda_section_is_what_the_newest_results_file_says():
    file = UPDATE["newest_results"]("cuda")
    section = UPDATE["cuda_section"](json.loads(file.read_text()), str(file.relative_to(ROOT))) if file else ""
    _, _, rest = README.partition(UPDATE["CUDA"])
    assert rest.partition(UPDATE["END"])[0].strip() == section


def test_learning_section_is_what_the_results_file_says():
    rows = read_results(ROOT / UPDATE["LEARNING_FILE"])["rows"]
    _, _, rest = README.partition(UPDATE["LEARNING"])
    assert rest.partition(UPDATE["END"])[0].strip() == UPDATE["learning_section"](rows)


def test_replacing_a_section_leaves_the_rest():
    text = f"a\n{UPDATE['SPEED']}\nold\n{UPDATE['END']}\nb"
    assert UPDATE["replace_section"](text, UPDATE["SPEED"], "new") == text.replace("old", "new")


def test_a_readme_without_the_section_is_an_error_that_names_the_mark():
    with pytest.raises(ValueError, match="must hold <!-- from benchmarks/results"):
        UPDATE["replace_section"]("nothing", UPDATE["SPEED"], "new")


def test_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).exists() for picture in pictures)


def test_links_lead_somewhere():
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_code_runs():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
