"""`crossmodal bench`: measure and show, check for continuous integration, or compare two results files."""

import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TextIO

from crossmodal._extras import require
from crossmodal.bench import regressions, results, smoke
from crossmodal.bench.machine import slug
from crossmodal.bench.progress import ProgressBar
from crossmodal.bench.run import RunConfig, run
from crossmodal.bench.table import print_results

_WIDTH_WHERE_NONE_IS_KNOWN = 180  # a file, a pipe: rich would fold the table to 80 columns


@dataclass(frozen=True)
class Output:
    """Attributes:
    json: the results file, or a folder for ``<date>-<device>.json``; None: none.
    pictures: folder for ``roofline.png`` and ``speedup.png``; None: none.
    """

    json: Path | None = None
    pictures: Path | None = None


def bench(config: RunConfig, output: Output, stream: TextIO | None = None) -> int:
    """Measure, print the table, write what is asked for.

    Returns:
        1 if crossmodal gave a wrong answer or had no kernel, else 0.

    Raises:
        MissingExtraError: when a package of the extra ``bench`` is not installed; nothing has been measured then.
    """
    rich = require("rich.console", distribution="rich", extra="bench")
    if output.pictures is not None:
        require("matplotlib.figure", distribution="matplotlib", extra="bench")
    found = run(config, ProgressBar(rich.Console(stderr=True)))
    stream = stream or sys.stdout
    console = rich.Console(file=stream, width=None if stream.isatty() else _WIDTH_WHERE_NONE_IS_KNOWN)
    print_results(found, console)
    if output.json is not None:
        file = output.json
        if file.is_dir():
            file /= f"{date.today().isoformat()}-{slug(found.machine)}.json"
        results.write(found, file)
        print(f"written: {file}", file=stream)
    if output.pictures is not None:
        draw(found, output.pictures)
        print(f"written: {output.pictures / 'roofline.png'}, {output.pictures / 'speedup.png'}", file=stream)
    return _fail(smoke.broken(found))


def draw(found: results.Results, folder: Path) -> None:
    """Both pictures."""
    from crossmodal.bench.pictures import draw_roofline, draw_speedups

    folder.mkdir(parents=True, exist_ok=True)
    draw_roofline(found, folder / "roofline.png")
    draw_speedups(found, folder / "speedup.png")


def check(config: RunConfig, stream: TextIO | None = None) -> int:
    """The check of ``smoke``.

    Returns:
        1 if a kernel failed it, else 0.
    """
    found = run(smoke.smoke_config(config))
    for key, speedup in smoke.speedups(found).items():
        print(f"{', '.join(key):<64}{speedup:>7.1f}x the reference's speed", file=stream or sys.stdout)
    return _fail(smoke.failures(found))


def compare(before: Path, after: Path, margin: float, stream: TextIO | None = None) -> int:
    """What got slower between two results files.

    Returns:
        1 if any row did, or nothing could be compared, else 0.
    """
    found = regressions.find_regressions(results.read(before), results.read(after))
    for line in regressions.report(found, margin):
        print(line, file=stream or sys.stdout)
    if not found.changes:
        return _fail([f"{before} and {after} have no row in common"])
    slower = [change for change in found.changes if change.is_regression(margin)]
    share = f"{len(slower)} of {len(found.changes)} rows lost more than {100 * margin:.0f} % of their speed-up"
    return _fail([share] if slower else [])


def _fail(reasons: list[str]) -> int:
    for reason in reasons:
        print(f"crossmodal bench: {reason}", file=sys.stderr)
    return int(bool(reasons))
