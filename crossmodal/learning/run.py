"""The command that trains what the results file lacks."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from crossmodal.data.open import open_data
from crossmodal.data.sample import Splits
from crossmodal.learning.cases import SUM, Case, config_of, singles_of
from crossmodal.learning.measures import extras, log_probability_sum
from crossmodal.learning.results import add_row, is_there, read_results
from crossmodal.train.run import CONFIG, METRICS, STATE, resume_run, start_run


def make_results(
    cases: Iterable[Case],
    root: Path,
    file: Path,
    runs: Path,
    *,
    changes: dict[str, Any] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Train, measure and write down every case that the file lacks.

    Single models that such a case begins with are trained where their runs are not there, whatever the file holds.
    Ended by anything, at any moment, and started again, it goes on where it stopped, inside a case too.

    Args:
        cases: see :func:`crossmodal.learning.cases.all_cases`.
        root: the folder of the recorded data.
        file: of the results.
        runs: where the runs are kept; the states of finished ones are removed.
        changes: of every case's settings, such as fewer epochs.
        stream: where to print; None is standard output.

    Raises:
        FileNotFoundError, ValueError: when the data are not in ``root``, or the file is something else.
    """
    stream = stream or sys.stdout
    opened: tuple[tuple[Any, ...], Splits] | None = None  # cases in a row often have the same data
    for case in _with_singles(cases, file, runs):
        print(f"\n{case.task}, {case.form}, seed {case.seed}", file=stream, flush=True)
        start = time.perf_counter()
        config = config_of(case, str(root), runs)
        if opened is None or opened[0] != (config.data, config.seed, config.modalities):
            key = (config.data, config.seed, config.modalities)
            opened = key, open_data(config.data, root, seed=config.seed, only=config.modalities)
        splits = opened[1]
        values = _sum(case, runs, splits) if case.form == SUM else _trained(case, root, runs, splits, changes, stream)
        values.setdefault("seconds", time.perf_counter() - start)
        if not is_there(read_results(file), case):
            add_row(file, case, values, threads=config.threads)
        # The model stays, for the sums; what a finished run could go on from is as large again, three times.
        (runs / case.name / STATE).unlink(missing_ok=True)


def _with_singles(cases: Iterable[Case], file: Path, runs: Path) -> Iterator[Case]:
    """Those that the file lacks, each after the single models that it begins with and that are not trained yet."""
    for case in cases:
        if not is_there(read_results(file), case):
            yield from (one for one in singles_of(case).values() if not (runs / one.name / METRICS).exists())
            yield case


def _sum(case: Case, runs: Path, splits: Splits) -> dict[str, Any]:
    """Of the single models of the same task and seed, which come before it."""
    return {"test": log_probability_sum([runs / single.name for single in singles_of(case).values()], splits)}


def _trained(
    case: Case, root: Path, runs: Path, splits: Splits, changes: dict[str, Any] | None, stream: TextIO
) -> dict[str, Any]:
    out = runs / case.name
    if (out / METRICS).exists():  # over, but written down in another file or not at all
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    elif (out / CONFIG).exists():
        metrics = resume_run(out, stream, splits=splits)
    else:
        config = config_of(case, str(root), runs)
        metrics = start_run(type(config)(**{**vars(config), **(changes or {})}), out, stream, splits=splits)
    return {
        "val": metrics["val"],
        "test": {name: value for name, value in metrics["test"].items() if name not in ("classes", "confusion")},
        "config": _portable(metrics["config"]),
        "seconds": sum(row["seconds"] for row in metrics["history"]),
        "data_share": sum(row["data_share"] for row in metrics["history"]) / len(metrics["history"]),
        **extras(out, splits, case.form),
    }


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the places of this machine: which runs it began with, not where they are."""
    start = {modality: Path(run).name for modality, run in config["start"].items()}
    return {**{name: value for name, value in config.items() if name != "root"}, "start": start}
