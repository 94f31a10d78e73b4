"""Writes README's sections of figures, and the pictures of speed, from the results files: run this file.

docs/demo/metrics.json      by `crossmodal demo --out docs/demo`
benchmarks/results/*.json   by `crossmodal bench --json FILE`; the newest, by the date that its name begins with
benchmarks/results/learning/results.json   by `crossmodal results`
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from crossmodal.bench.case import SUBJECT  # noqa: E402
from crossmodal.bench.command import draw  # noqa: E402
from crossmodal.bench.results import Results, Row, read  # noqa: E402
from crossmodal.bench.table import mean_speedups  # noqa: E402
from crossmodal.learning.pictures import draw_mass  # noqa: E402
from crossmodal.learning.results import read_results  # noqa: E402
from crossmodal.learning.table import speed_table, tables  # noqa: E402

END = "<!-- end -->"
DEMO = "<!-- from docs/demo/metrics.json by docs/update_readme.py -->"
SPEED = "<!-- from benchmarks/results by docs/update_readme.py -->"
LEARNING = "<!-- from benchmarks/results/learning/results.json by docs/update_readme.py -->"
LEARNING_FILE = "benchmarks/results/learning/results.json"
MASS = "docs/learning/mass.png"
PICTURES = "docs/speed"
MODALITIES = ("image", "text", "audio")
ACCURACIES = {"one modality alone": "single", "fused, this one missing": "missing", "fused, this one noise": "noise"}


def demo_section(metrics: dict[str, Any]) -> str:
    """Two tables: accuracies on the test split, times of the operator beside plain torch's."""
    lines = [f"| test accuracy | {' | '.join(MODALITIES)} |", "|---|---|---|---|"]
    for name, key in ACCURACIES.items():
        lines.append(f"| {name} | " + " | ".join(f"{metrics[key][modality]:.3f}" for modality in MODALITIES) + " |")
    lines.append(f"| fused, all there | {metrics['fused']:.3f} | | |")
    threads = metrics["speed"]["threads"]
    lines += ["", f"| float32, {threads} thread{'s' * (threads > 1)} | fused | plain torch | cat + SDPA |"]
    lines.append("|---|---|---|---|")
    for case in metrics["speed"]["cases"]:
        others = " | ".join(f"{case['speedup'][other]:.1f}x as long" for other in ("reference", "sdpa"))
        lines.append(f"| {case['name']}, {case['what']} | {case['milliseconds']['fused']:.2f} ms | {others} |")
    return "\n".join(lines)


def newest_results() -> Path | None:
    """The results file that README shows; None if none is committed."""
    return max((ROOT / "benchmarks" / "results").glob("*.json"), default=None)


def speed_section(results: Results, file: str) -> str:
    """A picture of speed-ups, a table of them with the share of the machine's peak, the roofline.

    Args:
        file: where the results come from, relative to the root.
    """
    rows = results.of(SUBJECT)
    columns = list(dict.fromkeys((row.dtype, row.which) for row in rows.values() if row.which != "both"))
    machine = results.machine
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    lines = [
        f"![speed-up of each operator over the fastest opponent]({PICTURES}/speedup.png)",
        "",
        f"{machine['cpu']}, {machine['isa']}, {threads}, torch {machine['torch']}: speed-up over the fastest way to do "
        "the same in torch that gives the right answer, in brackets the share of this machine's measured peak "
        f"([samples]({file}), [how it is measured](benchmarks/README.md)).",
        "",
        f"| batch, heads, queries, keys, head_dim | {' | '.join(' '.join(column) for column in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for op, shape, size in _problems(rows.values()):
        found = [rows.get((op, shape, *column)) for column in columns]
        lines.append(f"| `{op}`, {shape} ({', '.join(map(str, size))}) | {' | '.join(map(_cell, found))} |")
    means = mean_speedups(rows.values())
    lines.append(
        "| geometric mean, single samples too | "
        + " | ".join(f"{means[column]:.1f}x" if column in means else "" for column in columns)
        + " |"
    )
    lines += ["", f"![how near to the machine's limits]({PICTURES}/roofline.png)"]
    return "\n".join(lines)


def learning_section(rows: list[dict[str, Any]]) -> str:
    """A table per task, a picture of attention against noise, and what a training step costs; empty without results."""
    picture = f"![share of the attention on sound against noise]({MASS})" if _has_mass(rows) else ""
    parts = [tables(rows), picture, speed_table(rows)]
    return "\n\n".join(part for part in parts if part)


def _has_mass(rows: list[dict[str, Any]]) -> bool:
    return any("mass_by_snr" in row for row in rows)


def _problems(rows: Iterable[Row]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Those with a table line: single samples are in the results file, as is the time of an empty call."""
    shown = (row for row in rows if row.op != "overhead" and not row.is_single_sample)
    return list(dict.fromkeys((row.op, row.shape, row.size) for row in shown))


def _cell(row: Row | None) -> str:
    if row is None or row.speedup_vs_fastest is None:
        return ""
    return f"{row.speedup_vs_fastest:.1f}x ({row.percent_of_peak:.0f} %)"


def replace_section(text: str, begin: str, section: str) -> str:
    """The text with what stands between ``begin`` and the next end mark replaced."""
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"README.md must hold {begin} and, after it, {END}")
    return f"{before}{begin}\n{section}\n{END}{after}"


def main() -> None:
    readme = ROOT / "README.md"
    text = replace_section(
        readme.read_text(), DEMO, demo_section(json.loads((ROOT / "docs" / "demo" / "metrics.json").read_text()))
    )
    rows = read_results(ROOT / LEARNING_FILE)["rows"]
    draw_mass(rows, ROOT / MASS)
    text = replace_section(text, LEARNING, learning_section(rows))
    if file := newest_results():
        results = read(file)
        draw(results, ROOT / PICTURES)
        text = replace_section(text, SPEED, speed_section(results, str(file.relative_to(ROOT))))
    readme.write_text(text)


if __name__ == "__main__":
    main()
