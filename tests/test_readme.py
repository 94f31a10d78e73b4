"""README's figures are those of the results file beside its pictures; its code runs."""

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_demo_section_is_what_the_results_file_says():
    update_readme = runpy.run_path(str(ROOT / "docs" / "update_readme.py"))
    metrics = json.loads((ROOT / "docs" / "demo" / "metrics.json").read_text())
    assert update_readme["demo_section"](metrics) in README


def test_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).exists() for picture in pictures)


def test_links_lead_somewhere():
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_code_runs():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
