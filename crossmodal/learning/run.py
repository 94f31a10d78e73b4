"""The command that trains what the results file lacks."""

import dataclasses
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
from crossmodal.train.config import TrainConfig, make_config, read_config
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
        FileNotFoundError, ValueError: when the data are not in ``root``, the file is something else, or a run of the
            name of a case, or of one that it begins with, has other settings than the case.
    """
    stream = stream or sys.stdout
    opened: tuple[tuple[Any, ...], Splits] | None = None  # cases in a row often have the same data
    for case in _with_singles(_checked(cases, root, file, runs, changes), runs):
        print(f"\n{case.task}, {case.form}, seed {case.seed}", file=stream, flush=True)
        start = time.perf_counter()
        config = _config_of(case, root, runs, changes)
        if opened is None or opened[0] != (config.data, config.seed, config.modalities):
            key = (config.data, config.seed, config.modalities)
            opened = key, open_data(config.data, root, seed=config.seed, only=config.modalities)
        splits = opened[1]
        values = _sum(case, runs, splits) if case.form == SUM else _trained(case, config, runs, splits, stream)
        values.setdefault("seconds", time.perf_counter() - start)
        if not is_there(read_results(file), case):
            add_row(file, case, values, threads=config.threads)
        # The model stays, for the sums; what a finished run could go on from is as large again, three times.
        (runs / case.name / STATE).unlink(missing_ok=True)


def _checked(
    cases: Iterable[Case], root: Path, file: Path, runs: Path, changes: dict[str, Any] | None
) -> Iterator[Case]:
    """Those that the file lacks.

    Raises:
        ValueError: see :func:`_check_run`, for the case or a single model that it begins with.
    """
    for case in cases:
        if not is_there(read_results(file), case):
            for one in (case, *singles_of(case).values()):
                _check_run(runs / one.name, _config_of(one, root, runs, changes))
            yield case


def _with_singles(cases: Iterable[Case], runs: Path) -> Iterator[Case]:
    """Each after the single models that it begins with and that are not trained yet."""
    for case in cases:
        yield from (one for one in singles_of(case).values() if not (runs / one.name / METRICS).exists())
        yield case


def _sum(case: Case, runs: Path, splits: Splits) -> dict[str, Any]:
    """Of the single models of the same task and seed, which come before it."""
    return {"test": log_probability_sum([runs / single.name for single in singles_of(case).values()], splits)}


def _config_of(case: Case, root: Path, runs: Path, changes: dict[str, Any] | None) -> TrainConfig:
    return dataclasses.replace(config_of(case, str(root), runs), **(changes or {}))


def _check_run(out: Path, config: TrainConfig) -> None:
    """What stands in a folder may be of another version of the cases, or of fewer epochs to try something out.

    Raises:
        ValueError: when there is a run of other settings.
    """
    if (out / METRICS).exists():
        values = json.loads((out / METRICS).read_text(encoding="utf-8"))["config"]
    elif (out / CONFIG).exists():
        values = read_config(out / CONFIG)
    else:
        return
    # Settings that are newer than the run have their defaults.
    kept = _portable({**make_config({"data": config.data}).as_dict(), **values})
    wanted = _portable(config.as_dict())
    if other := [name for name in {**wanted, **kept} if name not in wanted or kept[name] != wanted[name]]:
        raise ValueError(f"{out} holds a run of other settings than this case: {', '.join(other)}; move it away")


def _trained(case: Case, config: TrainConfig, runs: Path, splits: Splits, stream: TextIO) -> dict[str, Any]:
    out = runs / case.name
    if (out / METRICS).exists():  # over, but written down in another file or not at all
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    elif (out / CONFIG).exists():
        metrics = resume_run(out, stream, splits=splits)
    else:
        metrics = start_run(config, out, stream, splits=splits)
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
