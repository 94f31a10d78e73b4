"""Writes README's sections of figures, and the pictures of speed, from the results files: run this file.

docs/demo/metrics.json      by `crossmodal demo --out docs/demo`
benchmarks/results/*.json   by `crossmodal bench --json FILE`; the newest, by the date that its name begins with
benchmarks/results/cuda/*.json   by `python -m benchmarks.cuda_attention --json FILE` on a GPU; the newest, likewise
benchmarks/results/learning/results.json   by `crossmodal results`
"""

import json
import math
import statistics
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
CUDA = "<!-- from benchmarks/results/cuda by docs/update_readme.py -->"
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


def newest_results(folder: str = "") -> Path | None:
    """The results file that README shows; None if none is committed."""
    return max((ROOT / "benchmarks" / "results" / folder).glob("*.json"), default=None)


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


def cuda_section(report: dict[str, Any], file: str) -> str:
    """A line for each case: how fast, beside whom, and how near to the limit of memory or of matrix products."""
    lines = [
        f"{report['device']}, torch {report['torch']}, bfloat16: time, speed-up over the fastest way to do the same in "
        "torch that gives the right answer, and the share of the bandwidth that a copy has here, with each input read "
        f"and each output written once ([samples]({file})).",
        "",
        "| batch, heads, queries, keys, head_dim | forward | forward and backward |",
        "|---|---|---|",
    ]
    entries = {(entry["case"], entry["backward"]): entry for entry in report["entries"]}
    problems = {str(entry["shapes"]): case for (case, _), entry in reversed(entries.items())}  # the first of equal ones
    for case in dict.fromkeys(case for case, _ in entries):
        if problems[str(entries[case, False]["shapes"])] != case:
            continue
        found = [entries.get((case, backward)) for backward in (False, True)]
        cells = " | ".join(_cuda_cell(entry, report["copy_gb_per_s"]) for entry in found)
        lines.append(f"| {case} {_cuda_size(entries[case, False]['shapes'])} | {cells} |")
    return "\n".join(lines)


def _cuda_size(shapes: list[list[int]]) -> str:
    batch, heads, seqlen_q, _ = shapes[0]
    *_, head_dim = shapes[-1]
    keys = sum(rows for _, _, rows, _ in shapes[1:][:: 1 if len(shapes) == 2 else 2])
    return f"({batch}, {heads}, {seqlen_q}, {keys}, {head_dim})"


def _cuda_cell(entry: dict[str, Any] | None, gigabytes: float) -> str:
    medians = {name: statistics.median(samples) for name, samples in (entry or {"us": {}})["us"].items()}
    own = medians.pop("crossmodal", None)
    if entry is None or own is None:
        return ""
    first, *_, last = entry["shapes"]
    inputs = sum(2 * math.prod(shape) for shape in entry["shapes"])
    output = 2 * math.prod((*first[:-1], last[-1]))
    # Backward reads the inputs again, out and dout, and writes a gradient of each input.
    moved = inputs + output + (2 * inputs + 2 * output if entry["backward"] else 0)
    share = 100 * moved / gigabytes / 1000 / own
    fastest = min(medians, key=medians.__getitem__, default=None)
    beside = f", {medians[fastest] / own:.2f}x {fastest}" if fastest else ""
    return f"{own:.0f} us{beside} ({share:.0f} %)"


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
    if file := newest_results("cuda"):
        text = replace_section(text, CUDA, cuda_section(json.loads(file.read_text()), str(file.relative_to(ROOT))))
    readme.write_text(text)


if __name__ == "__main__":
    main()
