"""One case from answers to rows: judged, its memory measured, timed in all passes."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import crossmodal
from crossmodal.bench.answers import judge
from crossmodal.bench.case import PASSES, SUBJECT, Case, Provider, dtype_name
from crossmodal.bench.memory import peak_mib
from crossmodal.bench.peak import Peak
from crossmodal.bench.ratios import paired_ratios, summarize
from crossmodal.bench.results import NotTimed, Row
from crossmodal.bench.timing import Effort, Timed, interleave

Samples = Mapping[str, list[float]]


def compare(
    case: Case,
    peak: Peak,
    effort: Effort,
    *,
    seed: int = 0,
    only: frozenset[str] = frozenset(),
    passes: tuple[str, ...] = PASSES,
) -> tuple[list[Row], list[NotTimed]]:
    """Rows of all who answer the case rightly, and a note on each who does not.

    Args:
        only: names of providers to take; empty: all.
        passes: which to time, of those that the case has.
    """
    with crossmodal.strict():  # a kernel that hands over to plain torch must not pass for a kernel
        verdicts = judge(case, only)
        dtype = dtype_name(case.dtype)
        notes = [NotTimed(case.op, case.shape, dtype, name, *verdict) for name, verdict in verdicts.items()]
        rows: list[Row] = []
        right = [p for p in case.providers if p.name not in verdicts and (not only or p.name in only)]
        for which in (which for which in case.passes if which in passes):
            ways = {provider.name: provider for provider in right if which in provider.passes}
            samples = interleave({n: timed(p, which) for n, p in ways.items()}, effort, random.Random(seed))
            rows += rows_of(case, which, ways, samples, peak)
    return rows, notes


def timed(provider: Provider, which: str) -> Timed:
    """One pass of a provider, for the clock."""
    if which == "forward":
        return Timed(lambda: None, lambda _: provider.forward())
    if which == "backward":
        return Timed(provider.graph, provider.backward)
    return Timed(lambda: None, lambda _: provider.both())


def rows_of(case: Case, which: str, ways: Mapping[str, Provider], samples: Samples, peak: Peak) -> Iterator[Row]:
    """What the samples of one pass say."""
    fastest = fastest_opponent(samples, [name for name, provider in ways.items() if provider.is_opponent])
    operations, num_bytes = case.operations_of(which), case.bytes_of(which)
    limit, bound = peak.limit(dtype_name(case.dtype), operations, num_bytes)
    for name, provider in ways.items():
        seconds = summarize(samples[name])
        speedup = paired_ratios(samples[fastest], samples[name]) if fastest else None
        yield Row(
            op=case.op,
            shape=case.shape,
            size=case.size,
            dtype=dtype_name(case.dtype),
            which=which,
            provider=name,
            median_s=seconds.median,
            p20_s=seconds.p20,
            p80_s=seconds.p80,
            percent_of_peak=100 * limit / seconds.median,
            bound=bound,
            gflops=1e-9 * operations / seconds.median,
            gbytes=1e-9 * num_bytes / seconds.median,
            fastest_opponent=fastest,
            speedup_vs_fastest=speedup.median if speedup else None,
            speedup_p20=speedup.p20 if speedup else None,
            speedup_p80=speedup.p80 if speedup else None,
            speedups={n: paired_ratios(samples[n], samples[name]).median for n in samples if n != name},
            peak_memory_mib=_memory(provider, which),
            samples_s=samples[name],
        )


def fastest_opponent(samples: Samples, opponents: list[str]) -> str:
    """Of those who answer rightly, the one with the shortest median; empty if there is none."""
    return min(
        (name for name in opponents if name != SUBJECT), key=lambda name: summarize(samples[name]).median, default=""
    )


def _memory(provider: Provider, which: str) -> float | None:
    if which != "backward":
        return peak_mib(provider.forward if which == "forward" else provider.both)
    out: Any = provider.graph()
    return peak_mib(lambda: provider.backward(out))
