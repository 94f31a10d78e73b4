"""`crossmodal results`: train what is missing, print the tables."""

from pathlib import Path
from typing import Any

from crossmodal.learning.cases import Case, all_cases
from crossmodal.learning.results import add_row, is_there, read_results
from crossmodal.learning.run import make_results
from crossmodal.learning.speed import time_steps
from crossmodal.learning.table import speed_table, tables

# Models with little attention and with more, by the name of their rows.
SPEED = {
    "hard, source": Case("hard", "source", 0),
    "hard, queries": Case("hard", "queries", 0),
    "hard, cross": Case("hard", "cross", 0),
    "sentences, CTC": Case("sentences", "CTC, speech and image", 0),
    "sentences, decoder": Case("sentences", "decoder, speech and image", 0),
    "clean, source": Case("clean", "source", 0),
    "AV-Find, cross": Case("find", "cross", 0),
}


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
        tasks, forms: only these; empty for all. The task ``speed`` times training steps, of all forms.
    """
    make_results(all_cases(seeds, tasks, forms), root, file, runs, changes=changes)
    if not tasks or "speed" in tasks:
        for name, model in SPEED.items():
            case = Case("speed", name, 0)
            if not is_there(read_results(file), case):
                add_row(file, case, time_steps(model, root), threads=1)
    rows = read_results(file)["rows"]
    print(
        f"\n{tables(rows)}\n\n{speed_table(rows)}\n\nin {file}; python docs/update_readme.py puts them into README.md"
    )
    return 0
