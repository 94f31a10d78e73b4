"""A whole run: every case of the operators asked for, then the results file's content."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from crossmodal.bench.case import PASSES, SUBJECT, UnavailableError, dtype_name
from crossmodal.bench.comparison import compare
from crossmodal.bench.machine import describe_machine
from crossmodal.bench.ops import OPS
from crossmodal.bench.peak import probe
from crossmodal.bench.progress import Progress
from crossmodal.bench.results import NotTimed, Results, Row
from crossmodal.bench.shapes import Shape
from crossmodal.bench.timing import Effort, threads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = ("float32", "bfloat16")
SLOW_TO_COMPILE = frozenset({"flex"})


@dataclass(frozen=True)
class RunConfig:
    """What to measure.

    Attributes:
        ops: names of ``OPS``; empty: all.
        shapes: parts of shapes' names; empty: all.
        dtypes: names of ``DTYPES``.
        threads: of torch.
        quick: a few small shapes, briefly, without those who compile for many seconds.
        seconds: about how long each pass of each case may take.
        seed: of inputs and order.
        providers: names to take; empty: all. The subject is always among them.
        passes: which of ``PASSES``.
    """

    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    threads: int = 1
    quick: bool = False
    seconds: float = 2.0
    seed: int = 0
    providers: frozenset[str] = frozenset()
    passes: tuple[str, ...] = PASSES
    shapes: tuple[str, ...] = ()

    @property
    def effort(self) -> Effort:
        return Effort(seconds=min(self.seconds, 0.3), fewest_rounds=3) if self.quick else Effort(seconds=self.seconds)

    def providers_of(self, op: str) -> frozenset[str]:
        known = frozenset(OPS[op].providers)
        wanted = self.providers & known if self.providers else known
        return (wanted - SLOW_TO_COMPILE if self.quick else wanted) | {SUBJECT}

    def cases(self) -> Iterator[tuple[str, Shape, torch.dtype]]:
        for name in self.ops or tuple(OPS):
            for shape in OPS[name].shapes:
                if self._takes(shape):
                    for dtype in self.dtypes:
                        yield name, shape, DTYPES[dtype]

    def _takes(self, shape: Shape) -> bool:
        if self.quick and not shape.quick:
            return False
        return not self.shapes or any(part in shape.name for part in self.shapes)


def run(config: RunConfig, progress: Progress | None = None) -> Results:
    """Measure everything; a case whose operator this version lacks is noted, not an error."""
    progress = progress or Progress()
    cases = list(config.cases())
    rows: list[Row] = []
    not_timed: list[NotTimed] = []
    with threads(config.threads), progress:
        progress.start(len(cases))
        peak = probe([DTYPES[name] for name in config.dtypes], config.threads, quick=config.quick)
        for op, shape, dtype in cases:
            progress.describe(f"{op}: {shape.name}, {dtype_name(dtype)}")
            try:
                case = OPS[op].build(shape, dtype, config.seed)
            except UnavailableError as error:
                not_timed.append(NotTimed(op, shape.name, dtype_name(dtype), SUBJECT, "missing", str(error)))
                progress.advance()
                continue
            timed, notes = compare(
                case,
                peak,
                config.effort,
                seed=config.seed,
                only=config.providers_of(op),
                passes=config.passes,
            )
            rows += timed
            not_timed += notes
            progress.advance()
    return Results(describe_machine(config.threads), peak, rows, not_timed)
