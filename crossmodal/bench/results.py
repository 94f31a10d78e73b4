"""The results file: what was measured, where, and every sample of it."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from crossmodal.bench.peak import Peak


@dataclass(frozen=True)
class Row:
    """One provider in one pass of one case.

    Attributes:
        size: ``(batch, num_heads, seqlen_q, seqlen_k, head_dim)``.
        which: the pass; in the file it is called ``pass``, which Python does not allow here.
        median_s, p20_s, p80_s: seconds per call.
        percent_of_peak: of what limits such work on this machine, and ``bound`` says whether that is ``"compute"``
            (multiply-adds out of registers) or ``"memory"`` (reading DRAM).
        gflops: useful ones; what is masked or padding does not count.
        fastest_opponent: among those with the right answer; empty if there was none.
        speedup_vs_fastest, speedup_p20, speedup_p80: of the ratios within a round; below 1: slower than the fastest
            opponent.
        speedups: the same against each other provider.
        peak_memory_mib: growth of resident memory during one call; None where the system does not tell.
        samples_s: round by round, so that ratios can be formed anew.
    """

    op: str
    shape: str
    size: tuple[int, ...]
    dtype: str
    which: str
    provider: str
    median_s: float
    p20_s: float
    p80_s: float
    percent_of_peak: float
    bound: str
    gflops: float
    gbytes: float
    fastest_opponent: str
    speedup_vs_fastest: float | None
    speedup_p20: float | None
    speedup_p80: float | None
    speedups: dict[str, float]
    peak_memory_mib: float | None
    samples_s: list[float]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is measured, whoever does it."""
        return (self.op, self.shape, self.dtype, self.which)

    @property
    def is_single_sample(self) -> bool:
        """Whether it is another shape's single sample, which overviews leave out."""
        return self.shape.endswith(", batch 1")


class NotTimed(NamedTuple):
    """Who has no rows in a case, and why.

    Attributes:
        verdict: ``"wrong"``: its answer; ``"refused"``: it raised an error; ``"missing"``: this version lacks the
            operator.
    """

    op: str
    shape: str
    dtype: str
    provider: str
    verdict: str
    reason: str


class Results(NamedTuple):
    """All of a run."""

    machine: dict[str, Any]
    peak: Peak
    rows: list[Row]
    not_timed: list[NotTimed]

    def of(self, provider: str) -> dict[tuple[str, str, str, str], Row]:
        """The rows of one provider by what they measure."""
        return {row.key: row for row in self.rows if row.provider == provider}


class ResultsError(ValueError):
    """A file that is no results file; the text says which file and why."""


def as_dict(results: Results) -> dict[str, Any]:
    """What the file holds."""
    return {
        "machine": results.machine,
        "peak": results.peak._asdict(),
        "rows": [_row_as_dict(row) for row in results.rows],
        "not_timed": [note._asdict() for note in results.not_timed],
    }


def write(results: Results, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(_to_json(as_dict(results)), encoding="utf-8")
    os.replace(partial, path)


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        ResultsError: it is no results file.
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    try:
        data = json.loads(text)
        return Results(
            machine=data["machine"],
            peak=Peak(**data["peak"]),
            rows=[_row_from_dict(row) for row in data["rows"]],
            not_timed=[NotTimed(**note) for note in data["not_timed"]],
        )
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path} is no JSON: {error}") from error
    except KeyError as error:
        raise ResultsError(f"{path} is no results file: {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is no results file: {error}") from error


def _row_as_dict(row: Row) -> dict[str, Any]:
    named = asdict(row)
    return {("pass" if name == "which" else name): value for name, value in named.items()}


def _row_from_dict(data: dict[str, Any]) -> Row:
    # Keys that a later version adds do not make a file unreadable.
    known = {field.name: data["pass" if field.name == "which" else field.name] for field in fields(Row)}
    return Row(**{**known, "size": tuple(known["size"])})


def _to_json(data: dict[str, Any]) -> str:
    """A row a line: such a file can be read by people, and compared line by line."""
    lines = []
    for name, value in data.items():
        if isinstance(value, list) and value:
            inner = ",\n".join(f"    {json.dumps(_rounded(item))}" for item in value)
            lines.append(f'  "{name}": [\n{inner}\n  ]')
        else:
            lines.append(f'  "{name}": {json.dumps(_rounded(value))}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Five digits of each number are more than a clock is good for."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
