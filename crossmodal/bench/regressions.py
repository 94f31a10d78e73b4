"""Two results files: what got slower.

Times of two runs do not compare, least of all those of two machines; ratios within a round do. So a row is held against
the opponent that was the fastest in the older run, and got slower where its speed-up over that opponent fell.
"""

from typing import NamedTuple

from crossmodal.bench.case import SUBJECT
from crossmodal.bench.results import Results, Row

DEFAULT_MARGIN = 0.1


class Change(NamedTuple):
    """One row in both runs.

    Attributes:
        key: ``(op, shape, dtype, pass)``.
        opponent: whom both speed-ups are over.
        before, after: the speed-ups.
    """

    key: tuple[str, str, str, str]
    opponent: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """Above 1: got faster."""
        return self.after / self.before

    def is_regression(self, margin: float) -> bool:
        """Whether more than ``margin`` of the speed-up is gone."""
        return self.ratio < 1 - margin


class Regressions(NamedTuple):
    """Attributes:
    changes: of the rows that both runs have, worst first.
    only_before, only_after: keys of the rows that only one has, or that share no opponent.
    """

    changes: list[Change]
    only_before: list[tuple[str, str, str, str]]
    only_after: list[tuple[str, str, str, str]]


def find_regressions(before: Results, after: Results) -> Regressions:
    """Compare the rows of crossmodal in two runs."""
    old, new = before.of(SUBJECT), after.of(SUBJECT)
    changes = []
    for key in old.keys() & new.keys():
        if change := _change(old[key], new[key]):
            changes.append(change)
    compared = {change.key for change in changes}
    return Regressions(
        sorted(changes, key=lambda change: (change.ratio, change.key)),
        [key for key in old if key not in compared],
        [key for key in new if key not in compared],
    )


def _change(before: Row, after: Row) -> Change | None:
    common = [name for name in before.speedups if name in after.speedups]
    if not common:
        return None
    # The smallest speed-up is that over the fastest.
    fastest = before.fastest_opponent
    opponent = fastest if fastest in common else min(common, key=lambda name: before.speedups[name])
    return Change(before.key, opponent, before.speedups[opponent], after.speedups[opponent])


def report(found: Regressions, margin: float) -> list[str]:
    """A line per row that both have, worst first, then what could not be compared."""
    lines = []
    for change in found.changes:
        mark = "SLOWER" if change.is_regression(margin) else "faster" if change.ratio > 1 + margin else ""
        speedups = f"{change.before:>7.2f}x -> {change.after:>6.2f}x over {change.opponent}"
        lines.append(f"{mark:<8}{', '.join(change.key):<64}{speedups}")
    for name, keys in (("before", found.only_before), ("after", found.only_after)):
        if keys:
            lines.append(f"only {name}: {'; '.join(', '.join(key) for key in keys)}")
    return lines
