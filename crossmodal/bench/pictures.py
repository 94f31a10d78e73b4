"""Two pictures of a run: how near to the machine's limits, and how far ahead of the fastest opponent."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossmodal.bench.case import SUBJECT
from crossmodal.bench.results import Results, Row
from crossmodal.demo.style import COLORS, FAINT, INK, PALE, Picture

_OURS, _THEIRS = COLORS["image"], "#d9822b"
_PASS_COLORS = {"forward": COLORS["image"], "backward": COLORS["text"], "both": COLORS["audio"]}
_NOT_DRAWN = "overhead"  # neither limit nor speed of arithmetic says anything about it


def draw_roofline(results: Results, path: Path) -> None:
    """Operations per second over operations per byte, beneath what registers and memory allow."""
    dtypes = _dtypes(results)
    picture = Picture(
        5.6 * max(len(dtypes), 1) + 0.6,
        5.2,
        "Roofline, forward",
        f"{_where(results)}; a line joins a problem's fastest right opponent with crossmodal",
    )
    grid = picture.figure.add_gridspec(
        1, max(len(dtypes), 1), left=0.07, right=0.97, top=0.79, bottom=0.12, wspace=0.18
    )
    for column, dtype in enumerate(dtypes):
        axes = picture.axes(grid[0, column], dtype)
        _draw_roof(axes, results, dtype)
        _draw_points(axes, results, dtype)
        axes.set_xlabel("operations per byte of input and output")
        if column == 0:
            axes.set_ylabel("GFLOP/s")
            axes.legend(loc="lower right", fontsize=9, frameon=False)
    picture.save(path)


def _draw_roof(axes: Any, results: Results, dtype: str) -> None:
    peak = results.peak.gflops[dtype]
    low, high = 0.25, 1024.0
    for level, style in (("DRAM", "-"), ("L2", ":")):
        bandwidth = results.peak.gbytes[level]
        ridge = peak / bandwidth
        axes.plot([low, ridge], [low * bandwidth, peak], color=INK, linestyle=style, linewidth=1.4)
        axes.text(
            low * 1.2,
            low * 1.2 * bandwidth * 1.15,
            f"{level} {bandwidth:.0f} GB/s",
            fontsize=8,
            rotation=math.degrees(math.atan(bandwidth)),  # along the line, whatever the scales make of its slope
            rotation_mode="anchor",
            transform_rotates_text=True,
        )
    axes.plot([peak / results.peak.gbytes["L2"], high], [peak, peak], color=INK, linewidth=1.4)
    axes.text(high, peak * 1.06, f"{peak:.0f} GFLOP/s", fontsize=8, ha="right", color=INK)
    slowest = min((row.gflops for row in results.rows if _is_drawn(row, dtype, "forward")), default=1.0)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(min(slowest, low * results.peak.gbytes["DRAM"]) / 2, 2 * peak),
    )
    axes.grid(color=PALE)


def _draw_points(axes: Any, results: Results, dtype: str) -> None:
    ours = [row for row in results.of(SUBJECT).values() if _is_drawn(row, dtype, "forward")]
    by_provider = {(row.provider, row.key): row for row in results.rows}
    for row in ours:
        other = by_provider.get((row.fastest_opponent, row.key))
        at = row.gflops / row.gbytes
        if other is not None:
            axes.plot([at, at], [other.gflops, row.gflops], color=FAINT, linewidth=1, zorder=2)
            axes.plot(at, other.gflops, "o", color=_THEIRS, markersize=5, zorder=3)
        axes.plot(at, row.gflops, "o", color=_OURS, markersize=6, zorder=4)
    axes.plot([], [], "o", color=_OURS, label="crossmodal")
    axes.plot([], [], "o", color=_THEIRS, label="fastest opponent")


def draw_speedups(results: Results, path: Path) -> None:
    """Bars of the time of the fastest right opponent over that of crossmodal."""
    dtypes = _dtypes(results)
    rows = [
        row
        for row in results.of(SUBJECT).values()
        if row.speedup_vs_fastest is not None and row.op != _NOT_DRAWN and not row.is_single_sample
    ]
    problems = list(dict.fromkeys((row.op, row.shape) for row in rows))
    passes = list(dict.fromkeys(row.which for row in rows if row.which != "both")) or ["both"]
    height = 1.7 + 0.38 * max(len(problems), 2)
    picture = Picture(
        12,
        height,
        "Speed-up",
        f"{_where(results)}; time of the fastest right opponent over time of crossmodal, median of paired ratios, "
        "p20 to p80",
    )
    grid = picture.figure.add_gridspec(
        1, max(len(dtypes), 1), left=0.28, right=0.97, top=1 - 1.25 / height, bottom=0.45 / height, wspace=0.1
    )
    for column, dtype in enumerate(dtypes):
        axes = picture.axes(grid[0, column], dtype)
        _draw_bars(axes, [row for row in rows if row.dtype == dtype], problems, passes)
        if column > 0:
            axes.set_yticklabels([])
        if column == len(dtypes) - 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(passes), fontsize=9, frameon=False)
    picture.save(path)


def _draw_bars(axes: Any, rows: Sequence[Row], problems: Sequence[tuple[str, str]], passes: Sequence[str]) -> None:
    width = 0.74 / len(passes)
    for row in rows:
        if row.which in passes:
            shift = (passes.index(row.which) - (len(passes) - 1) / 2) * width
            _draw_bar(axes, problems.index((row.op, row.shape)) + shift, 0.95 * width, row)
    for which in passes:
        axes.barh(-10, 0, color=_PASS_COLORS[which], label=which)
    axes.axvline(1, color=INK, linewidth=1)
    axes.grid(axis="x", color=PALE)
    axes.set_axisbelow(True)
    axes.set_ylim(max(len(problems), 1) - 0.5, -0.5)
    # Room for the labels at the ends of the bars.
    axes.set_xlim(0, 1.3 * max((max(row.speedup_vs_fastest or 1, row.speedup_p80 or 1) for row in rows), default=1))
    axes.set_yticks(range(len(problems)), [f"{op}: {shape}" for op, shape in problems], fontsize=9)


def _draw_bar(axes: Any, y: float, height: float, row: Row) -> None:
    speedup, low, high = row.speedup_vs_fastest, row.speedup_p20, row.speedup_p80
    assert speedup is not None and low is not None and high is not None
    axes.barh(y, speedup, height=height, color=_PASS_COLORS[row.which])
    axes.plot([low, high], [y, y], color=INK, linewidth=1)
    axes.text(max(speedup, high), y, f" {speedup:.1f}x {row.fastest_opponent}", va="center", fontsize=7.5)


def _dtypes(results: Results) -> list[str]:
    return list(dict.fromkeys(row.dtype for row in results.rows))


def _is_drawn(row: Row, dtype: str, which: str) -> bool:
    return row.dtype == dtype and row.which == which and row.op != _NOT_DRAWN


def _where(results: Results) -> str:
    machine = results.machine
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return f"{machine['cpu']}, {machine['isa']}, {threads}, torch {machine['torch']}"
