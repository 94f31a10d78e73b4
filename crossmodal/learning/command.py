"""`crossmodal results`: train what is missing, print the tables."""

from pathlib import Path
from typing import Any

from crossmodal.learning.cases import Case, all_cases
from crossmodal.learning.results import add_row, is_there, read_results
from crossmodal.learning.run import make_results
from crossmodal.learning.speed import time_steps
from crossmodal.learning.table import speed_table, tables

# The hard task's model with the least attention, and with the most.
SPEED = [Case("speed", form, 0) for form in ("queries", "cross")]


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
        tasks, forms: only these; empty for all. The task ``speed`` times training steps.
    """
    make_results(all_cases(seeds, tasks, forms), root, file, runs, changes=changes)
    for case in SPEED if not tasks or "speed" in tasks else ():
        if not is_there(read_results(file), case) and (not forms or case.form in forms):
            add_row(file, case, time_steps(Case("hard", case.form, 0), root), threads=1)
    rows = read_results(file)["rows"]
    print(
        f"\n{tables(rows)}\n\n{speed_table(rows)}\n\nin {file}; python docs/update_readme.py puts them into README.md"
    )
    return 0
