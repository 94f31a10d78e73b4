"""A minute's check that no kernel has become absurdly slow, for continuous integration.

Machines of continuous integration are slow, shared and different from each other: no time is compared, only the ratio
to plain torch within a round, and with so wide a margin that only a mistake falls through.
"""

from crossmodal.bench.case import SUBJECT
from crossmodal.bench.ratios import paired_ratios
from crossmodal.bench.results import Results
from crossmodal.bench.run import RunConfig

# A kernel that takes 2.5 times as long as plain torch, which stores all weights, is broken.
WORST_SPEEDUP = 0.4


def smoke_config(config: RunConfig) -> RunConfig:
    """Quick, and nobody but the reference."""
    return RunConfig(
        ops=config.ops,
        dtypes=config.dtypes,
        threads=config.threads,
        quick=True,
        seconds=0.2,
        seed=config.seed,
        providers=frozenset({"reference", SUBJECT}),
        passes=("forward", "both"),
        shapes=config.shapes,
    )


def speedups(results: Results) -> dict[tuple[str, str, str, str], float]:
    """Over the reference, in the better rounds: others slow down some rounds, a mistake all of them."""
    references = results.of("reference")
    return {
        key: paired_ratios(references[key].samples_s, row.samples_s).p80
        for key, row in results.of(SUBJECT).items()
        if key in references
    }


def failures(results: Results) -> list[str]:
    """A line per kernel that is far slower than plain torch, answers wrongly, or refuses."""
    slow = [
        f"{', '.join(key)}: takes {1 / speedup:.1f} times as long as the reference in plain torch, "
        f"allowed {1 / WORST_SPEEDUP:.1f}"
        for key, speedup in speedups(results).items()
        if speedup < WORST_SPEEDUP
    ]
    return [*slow, *broken(results)]


def broken(results: Results) -> list[str]:
    """A line per case that crossmodal answers wrongly or refuses."""
    return [
        f"{note.op}, {note.shape}, {note.dtype}: {SUBJECT} {note.verdict}: {note.reason}"
        for note in results.not_timed
        if note.provider == SUBJECT and note.verdict != "missing"
    ]
