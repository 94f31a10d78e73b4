"""`crossmodal results`: train what is missing, print the tables."""

from pathlib import Path
from typing import Any

from crossmodal.learning.cases import Case, all_cases
from crossmodal.learning.results import add_row, is_there, read_results
from crossmodal.learning.run import make_results
from crossmodal.learning.speed import time_steps
from crossmodal.learning.table import tables

SPEED = Case("speed", "queries", 0)


def results(
    root: Path,
    file: Path,
    runs: Path,
    *,
    seeds: int,
    tasks: list[str],
    forms: list[str],
    changes: dict[str, Any] | None = None,
) -> int:
    """Make what the file lacks and print its tables; returns the exit status.

    Args:
        root, file, runs, changes: see :func:`crossmodal.learning.run.make_results`.
        seeds: how many of each.
        tasks, forms: only these; empty for all. The task ``speed`` times a training step of the hard task's model.
    """
    make_results(all_cases(seeds, tasks, forms), root, file, runs, changes=changes)
    if (not tasks or "speed" in tasks) and not is_there(read_results(file), SPEED):
        add_row(file, SPEED, time_steps(Case("hard", "queries", 0), root), threads=1)
    print(f"\n{tables(read_results(file)['rows'])}\n\nin {file}; python docs/update_readme.py puts them into README.md")
    return 0
