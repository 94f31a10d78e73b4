"""The results file: one row per case, and what it was made with."""

import datetime
import json
from pathlib import Path
from typing import Any

from crossmodal.bench.machine import describe_machine
from crossmodal.learning.cases import Case
from crossmodal.train.state import write_text

_FORMAT = "crossmodal learning 1"


def read_results(path: Path) -> dict[str, Any]:
    """What is in the file; an empty table where there is none.

    Raises:
        ValueError: when the file is something else.
    """
    if not path.exists():
        return {"format": _FORMAT, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != _FORMAT:
        raise ValueError(f"{path} holds no results of `crossmodal results`")
    return found


def is_there(results: dict[str, Any], case: Case) -> bool:
    """Whether the file has a row for it."""
    return any((row["task"], row["form"], row["seed"]) == case for row in results["rows"])


def add_row(path: Path, case: Case, values: dict[str, Any], *, threads: int) -> None:
    """Append a row; the file is whole at any moment.

    Args:
        path: the file.
        case: whose row it is.
        values: what was found.
        threads: of torch, while it was found.
    """
    results = read_results(path)
    results["rows"].append(
        {
            **case._asdict(),
            **values,
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine(threads),
        }
    )
    write_text(path, json.dumps(results, indent=1) + "\n")
