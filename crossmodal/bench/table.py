"""A run as a table on the terminal: a line per case and pass, what crossmodal needs and who comes next."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from crossmodal._extras import require
from crossmodal.bench.case import SUBJECT
from crossmodal.bench.ratios import geometric_mean
from crossmodal.bench.results import Results, Row


def print_results(results: Results, console: Any) -> None:
    """The table, the machine's peaks, and who was not timed.

    Args:
        console: of rich.
    """
    table = _new_table(f"{results.machine['cpu']}, {results.machine['isa']}, {_threads(results)}")
    for name, style in (("op", "left"), ("shape", "left"), ("dtype", "left"), ("pass", "left")):
        table.add_column(name, justify=style, no_wrap=True)
    for name in ("time", "GFLOP/s", "% of peak", "MiB", "speed-up", "p20-p80", "over", "over each"):
        table.add_column(name, justify="right" if name not in ("over", "over each") else "left", no_wrap=True)
    last = None
    for row in results.of(SUBJECT).values():
        if last is not None and last != (row.op, row.shape, row.dtype):
            table.add_section()
        last = (row.op, row.shape, row.dtype)
        table.add_row(*_cells(row))
    if table.row_count:
        console.print(table)
    for line in summary_lines(results):
        console.print(line, highlight=False)


def summary_lines(results: Results) -> list[str]:
    """The peaks, geometric means, and one line for each provider that was not timed."""
    gflops = ", ".join(f"{dtype} {value:.0f} GFLOP/s" for dtype, value in results.peak.gflops.items())
    gbytes = ", ".join(f"{level} {value:.0f} GB/s" for level, value in results.peak.gbytes.items())
    lines = [f"peak: {gflops}; {gbytes}"]
    for (dtype, which), mean in mean_speedups(results.of(SUBJECT).values()).items():
        lines.append(f"speed-up over the fastest right opponent, geometric mean, {dtype} {which}: {mean:.2f}x")
    for note in results.not_timed:
        lines.append(f"{note.verdict}: {note.provider}, {note.op}, {note.shape}, {note.dtype}: {note.reason}")
    return lines


def mean_speedups(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Geometric means by (dtype, pass). What a call costs beside its arithmetic is another question, and left out."""
    speedups = defaultdict(list)
    for row in rows:
        if row.speedup_vs_fastest is not None and row.op != "overhead":
            speedups[row.dtype, row.which].append(row.speedup_vs_fastest)
    return {group: geometric_mean(values) for group, values in speedups.items()}


def in_words(seconds: float) -> str:
    """Three digits and a unit: ``"1.23 ms"``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _cells(row: Row) -> list[str]:
    speedup, spread = "", ""
    if row.speedup_vs_fastest is not None:
        color = "green" if row.speedup_vs_fastest >= 1 else "red"
        speedup = f"[{color}]{row.speedup_vs_fastest:.2f}x[/]"
        spread = f"{row.speedup_p20:.2f}-{row.speedup_p80:.2f}"
    peak = f"{row.percent_of_peak:.0f}" + (" (memory)" if row.bound == "memory" else "")
    memory = "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f}"
    others = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in row.speedups.items())
    numbers = [in_words(row.median_s), f"{row.gflops:.1f}", peak, memory, speedup, spread]
    return [row.op, row.shape, row.dtype, row.which, *numbers, row.fastest_opponent, others]


def _new_table(title: str) -> Any:
    rich = require("rich.table", distribution="rich", extra="bench")
    box = require("rich.box", distribution="rich", extra="bench")
    return rich.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _threads(results: Results) -> str:
    threads = results.machine["threads"]
    return f"{threads} thread{'s' * (threads > 1)}"
