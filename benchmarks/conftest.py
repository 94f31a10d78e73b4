"""The harness of `crossmodal bench`, as pytest-benchmark shows and stores it.

pytest-benchmark times one function after the other; a ratio of two such times says little on a machine whose speed
changes. So the harness measures all providers of a case interleaved, and pytest-benchmark is handed those samples
through its clock, one provider at a time.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from crossmodal.bench.case import PASSES, SUBJECT, UnavailableError
from crossmodal.bench.comparison import compare
from crossmodal.bench.ops import OPS
from crossmodal.bench.peak import Peak, probe
from crossmodal.bench.results import NotTimed, Row
from crossmodal.bench.run import DEFAULT_DTYPES, DTYPES, RunConfig
from crossmodal.bench.shapes import Shape
from crossmodal.bench.timing import threads

Key = tuple[str, str, str]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crossmodal")
    group.addoption("--quick", action="store_true", help="a few small shapes, briefly")
    group.addoption("--dtypes", default=",".join(DEFAULT_DTYPES), help=f"of {', '.join(DTYPES)} (default: %(default)s)")
    group.addoption("--threads", type=int, default=1, help="CPU threads (default: 1)")
    group.addoption("--seconds", type=float, default=2.0, help="for each pass of each shape (default: 2)")


def config_of(pytest_config: pytest.Config, op: str) -> RunConfig:
    option = pytest_config.getoption
    dtypes = tuple(option("--dtypes").split(","))
    if unknown := set(dtypes) - set(DTYPES):
        raise pytest.UsageError(f"--dtypes must be of {', '.join(DTYPES)}, got {', '.join(sorted(unknown))}")
    return RunConfig(
        ops=(op,), dtypes=dtypes, threads=option("--threads"), quick=option("--quick"), seconds=option("--seconds")
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test per case, pass and provider; `op` stands in the module as OP."""
    if "measured" not in metafunc.fixturenames:
        return
    op = metafunc.function.__name__.removeprefix("test_")
    config = config_of(metafunc.config, op)
    wanted = config.providers_of(op)
    cases = [
        pytest.param(
            (config, op, shape, dtype, which, provider), id=f"{shape.name}-{str(dtype)[6:]}-{which}-{provider}"
        )
        for _, shape, dtype in config.cases()
        for which in PASSES
        for provider in OPS[op].providers
        if provider in wanted
    ]
    metafunc.parametrize("measured", cases, indirect=True, scope="function")


class Bench:
    """Measures a case when its first provider is asked for, and forgets it with the next case."""

    def __init__(self) -> None:
        self._peaks: dict[int, Peak] = {}
        self._key: Key | None = None
        self._measured: tuple[list[Row], list[NotTimed]] = ([], [])

    def rows(self, config: RunConfig, op: str, shape: Shape, dtype: Any) -> tuple[list[Row], list[NotTimed]]:
        key = (op, shape.name, str(dtype))
        if key != self._key:
            with threads(config.threads):
                peak = self._peaks.get(config.threads) or probe(
                    [DTYPES[name] for name in config.dtypes], config.threads, quick=config.quick
                )
                self._peaks[config.threads] = peak
                case = OPS[op].build(shape, dtype, config.seed)
                self._measured = compare(case, peak, config.effort, only=config.providers_of(op))
            self._key = key
        return self._measured


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    yield Bench()


@pytest.fixture
def measured(request: pytest.FixtureRequest, bench: Bench, benchmark: BenchmarkFixture) -> "Measured":
    """What the test hands to pytest-benchmark."""
    config, op, shape, dtype, which, provider = request.param
    benchmark.skipped = True  # until there is something to hand over, else the plugin warns
    try:
        rows, notes = bench.rows(config, op, shape, dtype)
    except UnavailableError as error:
        pytest.skip(str(error))
    for note in notes:
        if note.provider == provider:
            (pytest.fail if provider == SUBJECT else pytest.skip)(f"{note.verdict}: {note.reason}")
    for row in rows:
        if (row.provider, row.which) == (provider, which):
            return Measured(row, benchmark)
    pytest.skip(f"{provider} has no {which} pass here")


class Measured:
    """The samples of one provider in one pass."""

    def __init__(self, row: Row, benchmark: BenchmarkFixture) -> None:
        self._row = row
        self._benchmark = benchmark

    def hand_over(self) -> None:
        """Let pytest-benchmark `time` a function that does nothing, by a clock that shows the harness's samples."""
        row, benchmark = self._row, self._benchmark
        benchmark.skipped = False
        benchmark.group = ", ".join(row.key)
        benchmark.extra_info.update(
            percent_of_peak=round(row.percent_of_peak, 1),
            gflops=round(row.gflops, 2),
            gbytes=round(row.gbytes, 2),
            peak_memory_mib=row.peak_memory_mib,
            fastest_opponent=row.fastest_opponent,
            speedup_vs_fastest=row.speedup_vs_fastest and round(row.speedup_vs_fastest, 3),
        )
        benchmark._timer = _clock_of(row.samples_s).__next__
        benchmark.pedantic(lambda: None, rounds=len(row.samples_s), iterations=1)


def _clock_of(samples: list[float]) -> Iterator[float]:
    """Start and end of each sample in turn, then on and on for whoever still looks."""
    now = 0.0
    for sample in samples:
        yield now
        now += sample
        yield now
    while True:
        yield now
